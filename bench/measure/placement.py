"""Whether two arms share one process, or take turns in processes of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import psutil

from bench.design.arms import Comparison
from bench.design.grid import wants_largest_batch
from bench.measure.peak_memory import MemoryProbe
from bench.report.results import PeakMemory, Snapshot
from compressor.recipe.recipe import Bench

Processes = Literal["shared", "alternating"]
_MIB = 1024**2
_USABLE_SHARE = 0.9


def placement(
    config: Bench, comparisons: Sequence[Comparison], probes: dict[str, MemoryProbe], now: Snapshot
) -> tuple[Processes, str]:
    """Where the arms run, and why; `probes` are their peaks, alone, in the largest cell that each runs.

    Both are alive at once only where their measured peaks fit together. A largest batch fills the memory
    by itself, so arms that are measured at theirs take turns.
    """
    if config.processes == "alternating":
        return "alternating", "as asked for"
    if wants_largest_batch(config):
        return "alternating", "a largest batch leaves no room for another model"
    host = psutil.virtual_memory().available
    # A GPU that shares the host's memory tells no size of its own.
    sizes = [float(gpu.memory_mib) * _MIB for gpu in now.gpus if gpu.memory_mib.isdecimal()]
    device = min(sizes, default=host if now.gpus else 0.0)
    for comparison in comparisons:
        peaks = [probes[arm.id].peak for arm in comparison.arms]
        known = [peak for peak in peaks if isinstance(peak, PeakMemory)]
        on_device = sum(peak.device_bytes or 0 for peak in known)
        on_host = sum(peak.peak_bytes - peak.baseline_bytes for peak in known)
        if on_device > device * _USABLE_SHARE or on_host > host * _USABLE_SHARE:
            pair = " and ".join(arm.id for arm in comparison.arms)
            return "alternating", f"{pair} do not fit into memory together"
    return "shared", "both fit"
