"""Timing one model of random weights: its prompt and its decode step, each the best of several runs.

The best, because another process on the machine only ever adds time, and layer times are differences.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.design.arms import Arm
from bench.design.grid import Cell
from bench.design.prompts import make_prompts
from bench.measure.cell import run_once
from bench.metrics.static_batch import tpot_s, ttft_s
from bench.report.results import Absent
from bench.runtimes.base import Session, StaticRuntime
from compressor.choices.runtimes import runtime_named

NUM_STEPS = 16
_MIN_RUNS, _MAX_RUNS = 3, 10
_ENOUGH_S = 4.0


@dataclass(frozen=True, kw_only=True)
class ModelTimes:
    """Seconds from a prompt to its first token, and of one decode step in the middle of the generation."""

    prefill_s: float
    step_s: float


def time_model(arm: Arm, cell: Cell, *, seed: int) -> ModelTimes:
    """Time one model in a cell of the benchmark, without generating all of it.

    Raises:
        CompressExportError, RuntimeError: as the runtime does, where the model cannot be run.
    """
    runtime: StaticRuntime = runtime_named(arm.runtime).load()
    times = _time(runtime.load(arm.path, precision=arm.precision), cell, seed=seed)
    gc.collect()  # the next model's memory is this one's
    return times


def _time(session: Session, cell: Cell, *, seed: int) -> ModelTimes:
    prompt = Cell(cell.isl, 1, cell.batch_size)
    middle = Cell(cell.isl + cell.osl // 2, NUM_STEPS + 1, cell.batch_size)
    first, later = (make_prompts([session.vocabulary], cell=own, seed=seed) for own in (prompt, middle))

    def step_s() -> float:
        step = tpot_s(run_once(session, later, cell=middle))
        assert not isinstance(step, Absent), "several tokens were asked for"
        return step

    prefill_s = _best(lambda: ttft_s(run_once(session, first, cell=prompt)))
    return ModelTimes(prefill_s=prefill_s, step_s=_best(step_s))


def _best(measure: Callable[[], float]) -> float:
    """The shortest of several runs after a first one, fewer of them where they take long."""
    measure()
    start, found = time.perf_counter(), [measure()]
    while len(found) < _MIN_RUNS or (len(found) < _MAX_RUNS and time.perf_counter() - start < _ENOUGH_S):
        found.append(measure())
    return min(found)
