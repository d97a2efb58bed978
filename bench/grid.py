"""The static-batch grid: every pair of input and output length at every batch size."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.recipe import Bench


@dataclass(frozen=True)
class Cell:
    """One point of the grid.

    Attributes:
        isl: Input tokens of every sequence.
        osl: Output tokens of every sequence.
        batch_size: Sequences that start and end together.
    """

    isl: int
    osl: int
    batch_size: int

    @property
    def num_cached_tokens(self) -> int:
        """Tokens in the key/value cache at the end: what orders cells by memory."""
        return self.batch_size * (self.isl + self.osl)

    def __str__(self) -> str:
        return f"{self.isl}/{self.osl} x {self.batch_size}"


def grid_of(config: Bench) -> tuple[Cell, ...]:
    """The cells of a benchmark, lengths outermost, each once."""
    cells = [
        Cell(isl=isl, osl=osl, batch_size=batch_size)
        for isl, osl in config.isl_osl
        for batch_size in config.batch_sizes
    ]
    return tuple(dict.fromkeys(cells))


def by_memory(cells: tuple[Cell, ...]) -> list[Cell]:
    """The cells, most memory first; equal caches by the longer prefill."""
    return sorted(cells, key=lambda cell: (cell.num_cached_tokens, cell.batch_size * cell.isl), reverse=True)
