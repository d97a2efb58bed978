"""How numbers are shown; the only place where they are rounded."""

from __future__ import annotations

import math

from bench.report.results import Absent, Interval, PeakMemory

NO_NUMBER = "–"
SIGNIFICANT_DIGITS = 3
_MIB, _GIB = 1024**2, 1024**3


def show_number(value: float) -> str:
    """Three significant digits or more, never in exponents."""
    if value <= 0:
        return f"{value:.0f}"
    decimals = max(0, SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(value)))
    return f"{value:,.{decimals}f}"


def show_interval(interval: Interval) -> str:
    """`2.00x [1.95, 2.05]`."""
    return f"{interval.ratio:.2f}x [{interval.low:.2f}, {interval.high:.2f}]"


def show_gib(num_bytes: float) -> str:
    """`1.25 GiB`."""
    return f"{num_bytes / _GIB:.2f} GiB"


def show_size(num_bytes: int | Absent) -> str:
    """`1.25 GiB`, `12.5 MiB` for a small one, or a dash where there is none."""
    if isinstance(num_bytes, Absent):
        return NO_NUMBER
    is_small = num_bytes < _GIB / 10
    return f"{show_number(num_bytes / _MIB)} MiB" if is_small else show_gib(num_bytes)


def show_peak(memory: PeakMemory | Absent) -> str:
    """A peak with its cell and its baseline, or why there is none."""
    if isinstance(memory, Absent):
        return f"not measured: {memory.absent}"
    cell = f"{memory.isl}/{memory.osl} x {memory.batch_size}"
    device = "" if memory.device_bytes is None else f"GPU {show_gib(memory.device_bytes)}, host "
    host = f"{show_gib(memory.peak_bytes)} ({show_gib(memory.baseline_bytes)} before loading)"
    return f"{device}{host}, cell {cell}"


def or_unknown(value: object) -> str:
    """A value the machine may not tell."""
    if isinstance(value, float):
        return show_number(value)
    return "unknown" if value is None else str(value)
