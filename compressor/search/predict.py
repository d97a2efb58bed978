"""How much faster than its teacher a shape can be: by the roofline at the rates of this machine.

The roofline counts what has to be read and multiplied. It does not see what a layer costs beside that, so
of two shapes with equal bytes the shallower one is in truth a little faster than predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import geometric_mean

from bench.design.grid import Cell
from bench.machine.roofline import floor_s, work_of
from bench.report.results import Rates
from compressor.models.dims import Dims


def predicted_speedup(
    teacher: Dims, shape: Dims, *, cells: Sequence[tuple[int, int, int]], rates: Rates, precision: str
) -> float:
    """The teacher's least time over the shape's: geometric mean over cells of (isl, osl, batch size)."""
    return geometric_mean(
        _least_s(teacher, cell, rates, precision) / _least_s(shape, cell, rates, precision) for cell in cells
    )


def _least_s(dims: Dims, cell: tuple[int, int, int], rates: Rates, precision: str) -> float:
    return floor_s(work_of(dims, precision, Cell(*cell)), rates, precision)
