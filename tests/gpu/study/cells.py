"""A part as a list of cells, measured until its time is over and kept after each one."""

from __future__ import annotations

import contextlib
import gc
import json
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compressor.core.errors import CompressExportError
from tests.corruptions.report import write_result

Figures = dict[str, Any]
# What a GPU, a library or a model refuses: kept as the reason; anything else is a mistake of ours.
REFUSALS = (CompressExportError, RuntimeError, NotImplementedError, ValueError, TimeoutError)
_SHORTEST_S = 5.0
_REASON_LENGTH = 300


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a part runs, for how long, and whether at toy size."""

    device: str
    out: Path
    seconds: float
    toy: bool = False


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement: its name in the result, and what makes its figures."""

    key: str
    measure: Callable[[], Figures]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is measured, and its cells, most important first."""

    what: str
    cells: Callable[[Setting], Iterable[Cell]]


def run_part(name: str, part: Part, setting: Setting, *, again: bool = False) -> int:
    """Measure the cells that the result lacks, while there is time; returns how many are left."""
    file = setting.out / f"gpu-{name}.json"
    known = {} if again or not file.is_file() else _kept(file)
    started, left = time.monotonic(), 0
    for cell in part.cells(setting):
        if cell.key in known:
            continue
        remaining = setting.seconds - (time.monotonic() - started)
        if remaining < _SHORTEST_S:
            left += 1
            continue
        known[cell.key] = _figures(cell, remaining)
        print(f"{name}: {cell.key}: {known[cell.key]}", file=sys.stderr)
        data = {"what": part.what, "device": device_name(setting.device), "cells": known}
        write_result(f"gpu-{name}", f"make gpu PART={name}", data, directory=setting.out)
    return left


def device_name(device: str) -> str:
    """What the driver calls the GPU."""
    return torch.cuda.get_device_name() if device == "cuda" else device


def peak_bytes(device: str) -> int | None:
    """The most that torch had allocated on the GPU since `reset_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else None


def reset_peak(device: str) -> None:
    """Count the most allocated from now on."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def synchronise(device: str) -> None:
    """Wait for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: str, *, num_runs: int) -> list[float]:
    """Seconds of each run, after one that is not counted."""
    times = []
    for number in range(num_runs + 1):
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        if number:
            times.append(time.perf_counter() - started)
    return times


def _kept(file: Path) -> dict[str, Figures]:
    """The cells that were measured; those that ran out of time are tried again."""
    cells: dict[str, Figures] = json.loads(file.read_text(encoding="utf-8"))["data"]["cells"]
    return {key: figures for key, figures in cells.items() if not figures.get("out_of_time")}


def _figures(cell: Cell, seconds: float) -> Figures:
    """A cell's figures, or why there are none."""
    try:
        with _at_most(seconds):
            return cell.measure()
    except TimeoutError as error:
        return {"reason": str(error), "out_of_time": True}
    except REFUSALS as error:
        return {"reason": f"{type(error).__name__}: {str(error).splitlines()[0][:_REASON_LENGTH]}"}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Interrupt Python, between two calls of the GPU, when this time is over."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"not done in the {seconds:.0f} s that were left")

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
