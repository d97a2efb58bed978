from __future__ import annotations

from bench.grid import Cell, by_memory, grid_of
from compressor.recipe import Bench


def test_grid_is_every_length_at_every_batch_size_once() -> None:
    config = Bench(isl_osl=((128, 64), (16, 8), (128, 64)), batch_sizes=(1, 4))
    assert grid_of(config) == (Cell(128, 64, 1), Cell(128, 64, 4), Cell(16, 8, 1), Cell(16, 8, 4))


def test_the_largest_cell_is_the_one_with_most_cached_tokens_then_longest_prefill() -> None:
    cells = (Cell(10, 90, 1), Cell(90, 10, 1), Cell(10, 10, 4), Cell(50, 50, 2))
    assert by_memory(cells) == [Cell(50, 50, 2), Cell(90, 10, 1), Cell(10, 90, 1), Cell(10, 10, 4)]
