"""The static-batch grid: every pair of input and output length at every batch size."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from compressor.recipe.recipe import Bench

# Lengths of TensorRT-LLM's published throughput tables, shortest cache first.
PUBLISHED_ISL_OSL: tuple[tuple[int, int], ...] = (
    (128, 128),
    (1000, 1000),
    (128, 2048),
    (2048, 128),
    (500, 2000),
    (1000, 2000),
    (1024, 2048),
    (2048, 2048),
    (128, 4096),
    (5000, 500),
    (20000, 2000),
)


@dataclass(frozen=True)
class Preset:
    """A named grid: equal batches of both models, or one for the baseline and one for the candidate."""

    isl_osl: tuple[tuple[int, int], ...]
    batch_sizes: tuple[int, ...]
    batch_pairs: tuple[tuple[int, int], ...] = ()
    largest_batch: bool = False  # whether each model is also measured at its own
    source: str = ""


PRESETS: dict[str, Preset] = {
    "quick": Preset(isl_osl=((128, 128),), batch_sizes=(1, 8), source="two cells to look at first"),
    "published": Preset(
        isl_osl=PUBLISHED_ISL_OSL,
        batch_sizes=(1, 8, 32, 64),
        largest_batch=True,
        source="lengths of TensorRT-LLM's published tables",
    ),
    "minitron-blog": Preset(
        isl_osl=PUBLISHED_ISL_OSL,
        batch_sizes=(32, 64),
        batch_pairs=((32, 64),),
        source=(
            "arXiv 2408.11796: batch 32 for the 8B and 64 for the 4B; its lengths are only in a figure, so "
            "those of TensorRT-LLM's published tables stand in; beside it both batches for both models"
        ),
    ),
}


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


def wants_largest_batch(config: Bench) -> bool:
    """Whether each model is also measured at the largest batch that it can run."""
    return PRESETS[config.preset].largest_batch if config.preset else config.largest_batch


def by_memory(cells: tuple[Cell, ...]) -> list[Cell]:
    """The cells, most memory first; equal caches by the longer prefill."""
    return sorted(cells, key=lambda cell: (cell.num_cached_tokens, cell.batch_size * cell.isl), reverse=True)
