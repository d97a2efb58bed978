"""Which cells a comparison is measured in, and how often: what a plan and a measurement have in common."""

from __future__ import annotations

from bench.design.arms import Comparison
from bench.design.grid import Cell

# Fresh series after the one that fixed their length. Where every run is a process of its own, what differs
# from one start to the next varies within a series already, and one is enough.
NUM_SERIES = 6  # of a result; fewer are indicative
NUM_SERVED_SERIES = 1
MIN_WARMUP_REQUESTS = 2


def cells_of(
    comparison: Comparison, cells: tuple[Cell, ...], largest: dict[tuple[str, int, int], int]
) -> tuple[Cell, ...]:
    """The grid as it applies to one comparison.

    A batch size per model needs two models: one model against itself is measured at both sizes instead.
    `largest` adds one cell of each arm's own largest batch to every pair of lengths, by arm, isl and osl; an
    arm that runs not even one sequence is tried with one, so that the cell stays with its reason.
    """
    baseline, candidate = comparison.arms
    fitting = [
        part
        for cell in cells
        for part in ((cell,) if baseline.model != candidate.model else (cell.baseline, cell.candidate))
    ]
    for isl, osl in dict.fromkeys((cell.isl, cell.osl) for cell in cells):
        sizes = [largest.get((arm.id, isl, osl)) for arm in comparison.arms]
        if sizes != [None, None]:
            own = [size or 1 for size in sizes]
            fitting.append(Cell(isl, osl, own[0], None if own[0] == own[1] else own[1], is_largest=True))
    return tuple({cell: cell for cell in fitting}.values())
