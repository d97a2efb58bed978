from __future__ import annotations

import pytest

from bench.design.arms import Comparison
from bench.design.cells import cells_of
from bench.design.grid import Cell
from bench.measure.largest_batch import largest_batch, largest_that


@pytest.mark.parametrize("limit", [1, 2, 7, 8, 100])
@pytest.mark.parametrize("truth", [0, 1, 2, 3, 7, 8, 9, 64, 100, 1000])
def test_the_search_agrees_with_trying_every_number(truth: int, limit: int) -> None:
    tried: list[int] = []

    def runs(number: int) -> bool:
        tried.append(number)
        return number <= truth

    expected = max((number for number in range(1, limit + 1) if number <= truth), default=None)
    assert largest_that(runs, limit=limit) == expected
    assert len(tried) == len(set(tried)) <= 2 * limit.bit_length() + 2
    assert all(1 <= number <= limit for number in tried)


def test_a_real_arm_stops_at_what_it_cannot_run(comparison: Comparison) -> None:
    assert largest_batch(comparison.baseline, isl=4, osl=2, limit=2, seed=0) == 2
    assert largest_batch(comparison.baseline, isl=60, osl=60, limit=2, seed=0) is None


def test_cells_of_a_comparison(comparison: Comparison) -> None:
    grid = (Cell(8, 4, 1), Cell(8, 4, 32, 64))
    teacher, student = (arm.id for arm in comparison.arms)
    largest = {(teacher, 8, 4): 5, (student, 8, 4): 9}
    cells = cells_of(comparison, grid, largest)
    assert cells == (*grid, Cell(8, 4, 5, 9))
    assert [cell.is_largest for cell in cells] == [False, False, True]
    equal = {(teacher, 8, 4): 1, (student, 8, 4): 1}
    assert [cell.is_largest for cell in cells_of(comparison, grid, equal)] == [True, False]
    alone = Comparison(baseline=comparison.baseline, candidate=comparison.baseline)
    assert cells_of(alone, grid, largest) == tuple(Cell(8, 4, size) for size in (1, 32, 64, 5))
