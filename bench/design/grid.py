"""The static-batch grid: every pair of input and output length at every batch size."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from compressor.choices.grids import PRESETS
from compressor.recipe.recipe import Bench


@dataclass(frozen=True)
class Cell:
    """One point of the grid: `batch_size` sequences of these lengths start and end together.

    With a `candidate_batch_size`, which then differs on purpose, `batch_size` is the baseline's alone.
    """

    isl: int
    osl: int
    batch_size: int
    candidate_batch_size: int | None = None
    is_largest: bool = field(default=False, compare=False)  # as it was found on this machine

    @property
    def num_cached_tokens(self) -> int:
        """Tokens in the key/value cache at the end: what orders cells by memory."""
        return self.batch_size * (self.isl + self.osl)

    @property
    def baseline(self) -> Cell:
        """What the baseline alone does."""
        return replace(self, candidate_batch_size=None)

    @property
    def candidate(self) -> Cell:
        """What the candidate alone does."""
        return Cell(self.isl, self.osl, self.candidate_batch_size or self.batch_size)

    def __str__(self) -> str:
        own = "" if self.candidate_batch_size is None else f":{self.candidate_batch_size}"
        return f"{self.isl}/{self.osl} x {self.batch_size}{own}"


def grid_of(config: Bench) -> tuple[Cell, ...]:
    """The cells of a benchmark, lengths outermost, each once; a preset is a whole grid."""
    preset = PRESETS[config.preset] if config.preset else None
    isl_osl = preset.isl_osl if preset else config.isl_osl
    batch_sizes = preset.batch_sizes if preset else config.batch_sizes
    batch_pairs = preset.batch_pairs if preset else config.batch_pairs
    cells = [
        cell
        for isl, osl in isl_osl
        for cell in (
            *(Cell(isl, osl, batch_size) for batch_size in batch_sizes),
            *(Cell(isl, osl, *pair) for pair in batch_pairs),
        )
    ]
    return tuple(dict.fromkeys(cells))


def in_flight(config: Bench) -> tuple[tuple[int, int], ...]:
    """Numbers of requests in flight of a serving benchmark: the baseline's and the candidate's.

    A preset's batch sizes are those; else what `--concurrency` says.
    """
    preset = PRESETS[config.preset] if config.preset else None
    equal = preset.batch_sizes if preset else config.concurrency
    pairs = preset.batch_pairs if preset else config.concurrency_pairs
    return tuple(dict.fromkeys([*((number, number) for number in equal), *pairs]))


def served_cells(config: Bench) -> tuple[Cell, ...]:
    """The cells of a serving benchmark, whose batch sizes are numbers of requests in flight."""
    lengths = PRESETS[config.preset].isl_osl if config.preset else config.isl_osl
    cells = [
        Cell(isl, osl, first, None if first == second else second)
        for isl, osl in lengths
        for first, second in in_flight(config)
    ]
    return tuple(dict.fromkeys(cells))


def wants_largest_batch(config: Bench) -> bool:
    """Whether each model is also measured at the largest batch that it can run."""
    return PRESETS[config.preset].largest_batch if config.preset else config.largest_batch


def by_memory(cells: tuple[Cell, ...]) -> list[Cell]:
    """The cells, most memory first; equal caches by the longer prefill."""
    return sorted(cells, key=lambda cell: (cell.num_cached_tokens, cell.batch_size * cell.isl), reverse=True)
