"""The measurement `recovery`: how a repaired student of SmolLM2 is distilled best, beside one that is not.

Learning rates, warm-up, weighting of positions and few of the teacher's tokens, on the same text and budget.
Both students, and the rates that decide, are made with a second seed of the calibration windows and of the
training's order.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from time import monotonic
from typing import Any

from compressor.runs.artifact import ARTIFACT_FILE
from tests.performance.kept import keep, place_of, read_kept
from tests.performance.student_results import FITTED, MODEL, QUALITY, TEXT, WINDOWS, Command, Rows

NAME = "recovery"
SEEDS = (0, 1)
CUT = ("prune", MODEL, "--target", "80m", *FITTED)
REPAIR = ("reconstruct", "--teacher", MODEL, *FITTED)
TRAINING = (
    *("--teacher", MODEL, "--train-data", TEXT, "--tokens", "10240"),
    *("--context-length", "512", "--train-batch-size", "1"),
)
_RATE = "--learning-rate"
_AT_BEST = (_RATE, "5e-4")
# By the student they begin with.
RUNS: dict[str, dict[str, tuple[str, ...]]] = {
    "cut": {rate: (_RATE, rate) for rate in ("3e-4", "1e-3", "3e-3")},
    "repaired": {
        **{rate: (_RATE, rate) for rate in ("1e-4", "3e-4", "5e-4", "1e-3")},
        "5e-4, no warm-up": (*_AT_BEST, "--warmup-steps", "0"),
        "5e-4, warm-up of 30 %": (*_AT_BEST, "--warmup-ratio", "0.3"),
        "5e-4, positions by entropy": (*_AT_BEST, "--kl-weighting", "entropy"),
        "5e-4, top 64, rest dropped": (*_AT_BEST, "--top-k", "64"),
        "5e-4, top 64, rest in a bucket": (*_AT_BEST, "--top-k", "64", "--top-k-tail", "bucket"),
    },
}
_START = "not distilled"
_REPEATED = {("cut", "3e-4"), ("repaired", "1e-4"), ("repaired", "5e-4")}


def run_recovery(command: Command) -> dict[str, Any]:
    """Perplexities of both students and of every run of theirs, by seed."""
    kept = read_kept(NAME)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {start: {} for start in RUNS}
    for seed in SEEDS:
        for start, runs in RUNS.items():
            for label, options in {_START: (), **runs}.items():
                if seed != SEEDS[0] and label != _START and (start, label) not in _REPEATED:
                    continue
                key = _key(start, options, seed)
                if key not in kept:
                    kept[key] = _measure(command, start, options, seed)
                    keep(NAME, kept)
                found[start].setdefault(label, []).append(kept[key])
    return {
        "runs": found,
        "commands": [" ".join(words) for words in (CUT, REPAIR, ("distill", *TRAINING))],
    }


def _key(start: str, options: tuple[str, ...], seed: int) -> str:
    words = (*CUT, *REPAIR, *TRAINING, *options)
    return f"{start}, seed {seed}: {' '.join(words)}"


def _measure(command: Command, start: str, options: tuple[str, ...], seed: int) -> dict[str, Any]:
    student, own = _student(command, start, seed), ("--seed", str(seed))
    started, scratch = monotonic(), place_of(NAME) / "run"
    shutil.rmtree(scratch, ignore_errors=True)
    measured = str(student)
    if options:
        measured = str(scratch / "distilled")
        command("distill", str(student), *TRAINING, *options, *own, "-o", measured)
    seconds, perplexity = round(monotonic() - started), {}
    for number, (text, source) in enumerate(QUALITY.items()):
        out = str(scratch / f"quality-{number}")
        report = command("evaluate", measured, "--data", source, *WINDOWS, "-o", out)
        perplexity[text] = next(iter(report["models"].values()))["perplexity"]
    shutil.rmtree(scratch)
    return {"perplexity": perplexity, "seconds": seconds}


def _student(command: Command, start: str, seed: int) -> Path:
    """Where a student is, made when it is first asked for."""
    cut, repaired = (place_of(NAME) / f"{name}-{seed}" for name in ("cut", "repaired"))
    repair, *options = REPAIR
    for out, words in ((cut, CUT), (repaired, (repair, str(cut), *options))):
        if not (out / ARTIFACT_FILE).is_file():
            command(*words, "--seed", str(seed), "-o", str(out))
        if out.name.startswith(start):
            break
    return out


def recovery_rows(data: dict[str, Any]) -> Rows:
    """Header and rows of the table; the seeds' figures are separated by strokes."""
    rows = [
        (
            start,
            label,
            *(" / ".join(f"{seed['perplexity'][text]:,.1f}" for seed in seeds) for text in QUALITY),
        )
        for start, runs in data["runs"].items()
        for label, seeds in runs.items()
    ]
    return ("student", "distilled at", *QUALITY), rows
