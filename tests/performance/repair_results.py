"""The long measurement of repair on SmolLM2: students before and after least squares, without any training.

Every student is made and repaired with each seed of the calibration windows. What an interrupted measurement
found is kept in `KEPT` until it is complete.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.runs.artifact import write_json

KEPT = Path(__file__).resolve().parents[2] / "build" / "repair.json"
MODEL = ".assets/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = ".assets/wiki.txt"
SEEDS = (0, 1)
SCORED = ("--calib-data", TEXT, "--calib-size", "32", "--calib-seq-len", "512")
FITTED = ("--calib-data", TEXT, "--calib-size", "64", "--calib-seq-len", "512")
# Of the text that was calibrated on, `evaluate` reads the held-out part.
QUALITY = {"wiki, held-out": TEXT, "c4": ".assets/c4.txt"}
WINDOWS = ("--seq-len", "1024", "--size", "8")

Command = Callable[..., dict[str, Any]]
Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]


@dataclass(frozen=True, kw_only=True)
class Student:
    """The command that makes a student, and the sequences that it is calibrated on."""

    words: tuple[str, ...]
    calibration: tuple[str, ...] = SCORED


STUDENTS = {
    "81M by the default rule": Student(words=("prune", "--target", "80m")),
    "81M, MLP alone": Student(words=("prune", "--shape", "intermediate_size=512")),
    "99M, 20 layers, contiguous": Student(words=("prune", "--shape", "num_hidden_layers=20")),
    "99M, 20 layers, scattered": Student(
        words=("prune", "--shape", "num_hidden_layers=20", "--depth-removal", "scattered")
    ),
    "2:4, SparseGPT": Student(words=("sparsify",), calibration=FITTED),
    "2:4, SparseGPT and swaps": Student(words=("sparsify", "--mask-swaps", "20"), calibration=FITTED),
}


def run_repair(command: Command) -> dict[str, Any]:
    """Perplexities of every student before and after, by seed, and what the repair took."""
    KEPT.parent.mkdir(exist_ok=True)
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    for name, student in STUDENTS.items():
        for seed in SEEDS:
            key = f"{name}, seed {seed}"
            if key not in kept:
                with tempfile.TemporaryDirectory() as scratch:
                    kept[key] = _measure(command, student, seed, Path(scratch))
                write_json(KEPT, kept)
    KEPT.unlink()
    return {
        "students": {name: [kept[f"{name}, seed {seed}"] for seed in SEEDS] for name in STUDENTS},
        "calibration": " ".join(FITTED),
        "protocol": " ".join(WINDOWS),
    }


def _measure(command: Command, student: Student, seed: int, scratch: Path) -> dict[str, Any]:
    first, *options = student.words
    made, mended = str(scratch / "made"), str(scratch / "mended")
    own = ("--seed", str(seed))
    record = command(first, MODEL, *options, *student.calibration, *own, "-o", made)
    repair = command("reconstruct", made, "--teacher", MODEL, *FITTED, *own, "-o", mended)
    found = {
        text: command("evaluate", made, mended, "--data", source, *WINDOWS, "-o", str(scratch / str(number)))
        for number, (text, source) in enumerate(QUALITY.items())
    }
    perplexities = {
        text: [entry["perplexity"] for entry in report["models"].values()] for text, report in found.items()
    }
    details = repair["details"]
    return {
        "num_parameters": record["num_parameters"],
        "before": {text: values[0] for text, values in perplexities.items()},
        "after": {text: values[1] for text, values in perplexities.items()},
        "accepted": details["num_accepted"],
        "left": details["num_left"],
        "solve_seconds": details["solve_seconds"],
    }


def repair_rows(data: dict[str, Any]) -> Rows:
    """Header and rows of the table; the seeds' figures are separated by strokes."""

    def figures(seeds: list[dict[str, Any]], when: str, text: str) -> str:
        return " / ".join(f"{seed[when][text]:,.1f}" for seed in seeds)

    rows = [
        (
            name,
            f"{seeds[0]['num_parameters']:,}",
            *(figures(seeds, when, text) for text in QUALITY for when in ("before", "after")),
            " / ".join(f"{seed['accepted']} of {seed['accepted'] + seed['left']}" for seed in seeds),
        )
        for name, seeds in data["students"].items()
    ]
    texts = tuple(f"{text}: {when}" for text in QUALITY for when in ("pruned or sparse", "repaired"))
    return ("student", "parameters", *texts, "layers accepted"), rows
