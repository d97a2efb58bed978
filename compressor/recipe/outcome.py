"""The recipe's section about what a student has to reach, in place of how large it is to be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, ClassVar, Literal

from compressor.recipe.forms import written
from compressor.recipe.option import Section, option

Goal = Literal["speedup", "memory", "latency"]
GOALS: tuple[Goal, ...] = ("speedup", "memory", "latency")
_NUMBER = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([a-zA-Z]*)")
_FACTORS = {"": 1.0, "x": 1.0}
_BYTES = {"b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def _quantity(text: str, *, units: Mapping[str, float], form: str) -> float:
    match = _NUMBER.fullmatch(text.strip())
    if match is None or match[2].lower() not in units:
        raise ValueError(f"{text[:40]!r} is not {form}")
    return float(match[1]) * units[match[2].lower()]


def _bytes(text: str) -> int:
    """`6GiB` in bytes."""
    return int(_quantity(text, units=_BYTES, form="a size such as 6GiB, 800MiB or 6GB"))


Factor = Annotated[float, written(partial(_quantity, units=_FACTORS, form="a factor such as 2x or 1.5x"))]
Bytes = Annotated[int, written(_bytes)]
Seconds = Annotated[float, written(partial(_quantity, units=_SECONDS, form="a time such as 20ms or 0.5s"))]


class Outcome(Section):
    """What the student has to reach: its size follows from it."""

    heading: ClassVar[str] = "Target by outcome, instead of --target"
    prefix: ClassVar[str] = "target"

    speedup: Factor | None = option(
        None,
        "Output throughput of the student over MODEL's, at the benchmark's first lengths, batch size and "
        "precision, such as 2x. The largest student that is predicted to reach it is made, and measured.",
        metavar="FACTOR",
        gt=1,
    )
    memory: Bytes | None = option(
        None,
        "Memory of the student's weights, as the run stores them, and of its key/value cache together, such "
        "as 6GiB.",
        metavar="SIZE",
        gt=0,
    )
    latency: Seconds | None = option(
        None,
        "Time per output token after the first, at the benchmark's first lengths, batch size and precision, "
        "such as 20ms.",
        metavar="TIME",
        gt=0,
    )
    batch_size: int = option(1, "Number of sequences whose key/value cache --target-memory counts.", ge=1)
    context_length: int = option(
        4096, "Tokens per sequence whose key/value cache --target-memory counts.", ge=1
    )
    layer_times: str | None = option(
        None,
        "Directory that keeps the times of decoder layers that --target-speedup and --target-latency are "
        "predicted from; by default .compress-export beside the output directory.",
        flag="--layer-times",
        metavar="DIR",
    )

    @property
    def goals(self) -> dict[Goal, float]:
        """What is asked for: a factor, bytes, or seconds."""
        values = {name: getattr(self, name) for name in GOALS}
        return {name: float(value) for name, value in values.items() if value is not None}
