"""The long measurements of compressed students of SmolLM2: as cut, repaired, and after a short distillation.

Every student is made with each seed of its calibration windows, and its entry says on which day. An entry
that is taken over from an earlier result keeps the day and the machine it was measured on.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from time import monotonic
from typing import Any

from tests.corruptions.report import RESULTS
from tests.performance.kept import keep, read_kept

MODEL = ".assets/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = ".assets/wiki.txt"
NUM_SEEDS = 2
SCORED = ("--calib-data", TEXT, "--calib-size", "32", "--calib-seq-len", "512")
FITTED = ("--calib-data", TEXT, "--calib-size", "64", "--calib-seq-len", "512")
# Of the text that was calibrated on, `evaluate` reads the held-out part.
QUALITY = {"wiki, held-out": TEXT, "c4": ".assets/c4.txt"}
WINDOWS = ("--seq-len", "1024", "--size", "8")
# The demonstration's, but for its exports and benchmark.
DEMONSTRATION = (
    *("--train-data", TEXT, "--context-length", "512", "--train-batch-size", "1"),
    *("--learning-rate", "5e-4"),
)
SHORT = (
    *("--train-data", TEXT, "--context-length", "256", "--train-batch-size", "4"),
    *("--micro-batch-size", "4", "--learning-rate", "5e-4"),
)

Command = Callable[..., dict[str, Any]]
Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]


@dataclass(frozen=True, kw_only=True)
class Student:
    """How a student comes to be.

    Attributes:
        words: The command that cuts it.
        calibration: The sequences that choose units and weights.
        repair: Those that `reconstruct` reads; none: not repaired.
        tokens: Of distillation afterwards.
        training: How it is distilled.
    """

    words: tuple[str, ...]
    calibration: tuple[str, ...] = SCORED
    repair: tuple[str, ...] = ()
    tokens: int = 0
    training: tuple[str, ...] = SHORT


def cut(shape: str, *options: str) -> tuple[str, ...]:
    return ("prune", "--shape", shape, *options)


def by_rule(shape: str, *options: str) -> Student:
    """A shape's student as the rules are compared: repaired with few windows, and shortly distilled."""
    words = cut(shape, "--sequence-aggregation", "mean", *options)
    return Student(words=words, repair=SCORED, tokens=10_240)


_SCATTERED = ("--depth-removal", "scattered")
_BLOCK = ("--depth-removal", "contiguous")
_BY_LOSS = ("--depth-importance", "loss", "--depth-size", "8", "--depth-curve", "10")
_AGGREGATIONS = ("l2", "mean", "var")
# Units of every kind are chosen; masks and distillation together see as many tokens as distillation alone.
_MASKED = "num_hidden_layers=28,num_attention_heads=6,intermediate_size=960,hidden_size=528"
_LEARNED = (
    *("--importance", "learned-masks", "--mask-tokens", "10240", "--mask-batch-size", "4"),
    *("--train-data", TEXT, "--context-length", "256"),
)
PARTS: dict[str, dict[str, Student]] = {
    "importance": {
        **{
            f"activation, {batch} of {sequence}": Student(
                words=cut(
                    "intermediate_size=1024",
                    *("--batch-aggregation", batch, "--sequence-aggregation", sequence),
                )
            )
            for batch in _AGGREGATIONS
            for sequence in _AGGREGATIONS
        },
        **{
            name: Student(words=cut("intermediate_size=1024", "--importance", name))
            for name in ("taylor", "weight-magnitude", "random")
        },
    },
    "target": {
        "--target 80m": Student(
            words=("prune", "--target", "80m"),
            calibration=FITTED,
            repair=FITTED,
            tokens=61_440,
            training=DEMONSTRATION,
        ),
    },
    "rules": {
        "60 %: both widths": by_rule("hidden_size=432,intermediate_size=1024"),
        "60 %: MLP": by_rule("intermediate_size=512"),
        "60 %: heads and MLP": by_rule("num_attention_heads=6,intermediate_size=640"),
        "60 %: 24 layers and MLP": by_rule("num_hidden_layers=24,intermediate_size=768", *_SCATTERED),
        "60 %: 24 layers, a block, and MLP": by_rule("num_hidden_layers=24,intermediate_size=768", *_BLOCK),
        "60 %: 20 layers and MLP": by_rule("num_hidden_layers=20,intermediate_size=1024", *_SCATTERED),
        "80 %: MLP": by_rule("intermediate_size=1024"),
        "80 %: 26 layers and MLP": by_rule("num_hidden_layers=26,intermediate_size=1280", *_SCATTERED),
    },
    "depth": {
        name: Student(words=cut("num_hidden_layers=20", *options), calibration=FITTED, repair=FITTED)
        for name, options in {
            "contiguous, by influence": _BLOCK,
            "contiguous, by loss": (*_BLOCK, *_BY_LOSS),
            "scattered, by influence": _SCATTERED,
            "scattered, by loss": (*_SCATTERED, *_BY_LOSS),
        }.items()
    },
    "masks": {
        "one-shot importance": Student(words=cut(_MASKED), repair=SCORED, tokens=20_480),
        **{
            f"{kind} masks": Student(
                words=cut(_MASKED, *_LEARNED, "--mask-kind", kind),
                calibration=(),
                repair=SCORED,
                tokens=10_240,
            )
            for kind in ("hard-concrete", "deterministic")
        },
    },
    "sparse-repair": {
        "SparseGPT": Student(words=("sparsify",), calibration=FITTED, repair=FITTED),
        "SparseGPT and swaps": Student(
            words=("sparsify", "--mask-swaps", "20"), calibration=FITTED, repair=FITTED
        ),
    },
}


def run_students(
    part: str, command: Command, *, num_seeds: int, keeps_recorded: bool = False
) -> dict[str, Any]:
    """Perplexities of a part's students at every stage, by seed.

    An interrupted measurement goes on. What docs/results holds is measured anew unless `keeps_recorded`.
    """
    students = PARTS[part]
    recorded = _recorded(part) if keeps_recorded else {}
    measured = read_kept(part)
    for seed in range(num_seeds):
        for name, student in students.items():
            key = _key(student, name, seed)
            if key not in recorded and key not in measured:
                with tempfile.TemporaryDirectory() as scratch:
                    entry = _measure(command, student, seed, Path(scratch))
                measured[key] = {"date": datetime.now(timezone.utc).date().isoformat(), **entry}
                keep(part, measured)
    found = recorded | measured
    return {
        "students": {
            name: [found[_key(student, name, seed)] for seed in range(num_seeds)]
            for name, student in students.items()
        },
        "commands": {name: _words(student) for name, student in students.items()},
        "protocol": " ".join(WINDOWS),
    }


def _recorded(part: str) -> dict[str, Any]:
    """What docs/results holds of the students that are still made by the same commands.

    An entry that does not say when and on what it was measured has the day and the machine of its file.
    """
    file = RESULTS / f"{part}.json"
    if not file.is_file():
        return {}
    document = json.loads(file.read_text(encoding="utf-8"))
    data, facts = document["data"], {name: document[name] for name in ("date", "hardware")}
    return {
        _key(PARTS[part][name], name, seed): {**facts, **entry}
        for name, seeds in data["students"].items()
        if name in PARTS[part] and data["commands"][name] == _words(PARTS[part][name])
        for seed, entry in enumerate(seeds)
    }


def _key(student: Student, name: str, seed: int) -> str:
    """Of what is kept: with the commands, so that others are measured again."""
    return f"{name}, seed {seed}: {'; '.join(_words(student))}"


def _words(student: Student) -> list[str]:
    """What makes a student, one command line per stage."""
    lines = [" ".join((*student.words, *student.calibration))]
    if student.repair:
        lines.append(" ".join(("reconstruct", *student.repair)))
    if student.tokens:
        lines.append(" ".join(("distill", "--tokens", str(student.tokens), *student.training)))
    return lines


def _measure(command: Command, student: Student, seed: int, scratch: Path) -> dict[str, Any]:
    """One student's stages, evaluated together."""
    made: dict[str, str] = {}
    own = ("--seed", str(seed))
    records, seconds = {}, {}

    def make(name: str, *words: str) -> None:
        started = monotonic()
        made[name] = str(scratch / name)
        records[name] = command(*words, *own, "-o", made[name])
        seconds[name] = round(monotonic() - started)

    first, *options = student.words
    make("cut", first, MODEL, *options, *student.calibration)

    if student.repair:
        make("repaired", "reconstruct", made["cut"], "--teacher", MODEL, *student.repair)
    if student.tokens:
        last, tokens = list(made.values())[-1], str(student.tokens)
        make("distilled", "distill", last, "--teacher", MODEL, *student.training, "--tokens", tokens)
    found: dict[str, dict[str, float]] = {name: {} for name in made}
    for number, (text, source) in enumerate(QUALITY.items()):
        out = str(scratch / f"quality-{number}")
        report = command("evaluate", *made.values(), "--data", source, *WINDOWS, "-o", out)
        for name, entry in zip(made, report["models"].values(), strict=True):
            found[name][text] = entry["perplexity"]
    details = records["repaired"]["details"] if student.repair else {}
    return {
        "num_parameters": records["cut"]["num_parameters"],
        "perplexity": found,
        "removed_layers": records["cut"]["details"].get("removed_layers", []),
        "seconds": seconds,
        **{name: details[name] for name in ("num_accepted", "num_left") if name in details},
    }


def student_seconds(data: dict[str, Any]) -> Iterator[int]:
    """What every stage of every student took, whenever it was measured."""
    for seeds in data["students"].values():
        for seed in seeds:
            yield from seed["seconds"].values()


def student_rows(data: dict[str, Any]) -> Rows:
    """Header and rows of a part's table; the seeds' figures are separated by strokes."""
    seeds_of = data["students"]
    stages = max((list(seeds[0]["perplexity"]) for seeds in seeds_of.values()), key=len)

    def figures(seeds: list[dict[str, Any]], stage: str, text: str) -> str:
        return " / ".join(f"{seed['perplexity'][stage][text]:,.1f}" for seed in seeds)

    rows = [
        (
            name,
            f"{seeds[0]['num_parameters'] / 1e6:.1f}M",
            *(figures(seeds, stage, text) for text in QUALITY for stage in stages),
        )
        for name, seeds in seeds_of.items()
    ]
    return ("student", "parameters", *(f"{text}: {stage}" for text in QUALITY for stage in stages)), rows
