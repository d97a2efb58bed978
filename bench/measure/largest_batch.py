"""The largest batch that one arm can run: doubled until it fails, then halved in between.

Every size is tried in a process of its own. One that runs on the CPU may take no more than nine tenths of
the memory that is free, so that a batch too large ends that process and no other.
"""

from __future__ import annotations

from collections.abc import Callable

import psutil

from bench.design.arms import Arm
from bench.design.grid import Cell
from bench.measure.peak_memory import run_alone
from bench.runtimes.base import StaticRuntime
from compressor.choices.runtimes import runtime_named
from compressor.core.errors import ResourceError

_FREE_SHARE = 0.9


def largest_batch(arm: Arm, *, isl: int, osl: int, limit: int, seed: int) -> int | None:
    """The largest batch up to `limit` that runs, or None where not even one sequence does."""
    memory_limit = None
    runtime: StaticRuntime = runtime_named(arm.runtime).load()
    if runtime.device(arm.path) == "cpu":
        memory_limit = int(psutil.virtual_memory().available * _FREE_SHARE)

    def runs(batch_size: int) -> bool:
        try:
            run_alone(arm, cell=Cell(isl, osl, batch_size), seed=seed, memory_limit=memory_limit)
        except ResourceError:
            return False
        return True

    return largest_that(runs, limit=limit)


def largest_that(runs: Callable[[int], bool], *, limit: int) -> int | None:
    """The largest number up to `limit` for which `runs` holds, given that it holds for all below it."""
    good, bad = 0, limit + 1
    size = 1
    while good + 1 < bad:
        if runs(size):
            good = size
        else:
            bad = size
        size = min(2 * good, limit) if bad == limit + 1 else (good + bad) // 2
    return good or None
