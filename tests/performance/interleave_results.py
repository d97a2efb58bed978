"""Several cuts with training between them against one cut, at equal tokens, on SmolLM2.

Every run has the same text, calibration, repair and budget of training; the one cut trains on the same
sequences. What an interrupted measurement found is kept in `build` until it is complete.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

from tests.performance.kept import keep, read_kept
from tests.performance.student_results import (
    DEMONSTRATION,
    MODEL,
    NUM_SEEDS,
    QUALITY,
    SCORED,
    TEXT,
    WINDOWS,
    Command,
    Rows,
)

CUTS = (1, 4)
WORDS = (
    *("run", MODEL, "--target", "80m", *SCORED, *DEMONSTRATION, "--tokens", "20480"),
    *("--formats", "huggingface", "--runtime", "none", "--eval-data", TEXT, "--eval-seq-len", "1024"),
    *("--eval-size", "8"),
)


def run_interleave(command: Command) -> dict[str, Any]:
    """Perplexities after every training of each run, by number of cuts and seed."""
    kept = read_kept("interleave")
    for cuts in CUTS:
        for seed in range(NUM_SEEDS):
            if (key := _key(cuts, seed)) not in kept:
                with tempfile.TemporaryDirectory() as scratch:
                    kept[key] = _measure(command, cuts, seed, Path(scratch))
                keep("interleave", kept)
    runs = {str(cuts): [kept[_key(cuts, seed)] for seed in range(NUM_SEEDS)] for cuts in CUTS}
    return {"runs": runs, "command": " ".join(WORDS)}


def _key(cuts: int, seed: int) -> str:
    return f"{cuts} cuts, seed {seed}: {' '.join(WORDS)}"


def _measure(command: Command, cuts: int, seed: int, scratch: Path) -> dict[str, Any]:
    started = monotonic()
    own = ("--interleave", str(cuts), "--seed", str(seed))
    summary = command(*WORDS, *own, "-o", str(scratch / "run"))
    seconds = round(monotonic() - started)
    models = summary["evaluation"]["models"]
    report = command(
        *("evaluate", str(scratch / "run" / "student"), "--data", QUALITY["c4"], *WINDOWS),
        *("-o", str(scratch / "quality")),
    )
    (other,) = report["models"].values()
    return {
        "num_parameters": summary["plan"]["student"]["num_parameters"],
        "shapes": [cut["num_parameters"] for cut in summary["plan"]["cuts"]],
        "before_training": models["reconstructed"]["perplexity"],
        "between": [models[cut["name"]]["perplexity"] for cut in summary["plan"]["cuts"][:-1]],
        "perplexity": {"wiki, held-out": models["distilled"]["perplexity"], "c4": other["perplexity"]},
        "seconds": seconds,
    }


def interleave_rows(data: dict[str, Any]) -> Rows:
    """Header and rows of the table; the seeds' figures are separated by strokes."""

    def figures(seeds: list[dict[str, Any]], text: str) -> str:
        return " / ".join(f"{seed['perplexity'][text]:,.1f}" for seed in seeds)

    rows = [
        (
            cuts,
            " > ".join(f"{size / 1e6:.0f}M" for size in seeds[0]["shapes"] or [seeds[0]["num_parameters"]]),
            " / ".join(f"{seed['before_training']:,.1f}" for seed in seeds),
            *(figures(seeds, text) for text in QUALITY),
            " / ".join(f"{seed['seconds'] / 60:.0f} min" for seed in seeds),
        )
        for cuts, seeds in data["runs"].items()
    ]
    return ("cuts", "sizes", "after the last repair", *QUALITY, "time"), rows
