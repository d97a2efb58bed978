"""Named grids of a benchmark: pairs of input and output length, and batch sizes."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named grid: equal batches of both models, or one for the baseline and one for the candidate.

    Attributes:
        help: One line for those who choose.
        largest_batch: Whether each model is also measured at its own largest.
        source: Where it is from.
    """

    help: str
    isl_osl: tuple[tuple[int, int], ...]
    batch_sizes: tuple[int, ...]
    batch_pairs: tuple[tuple[int, int], ...] = ()
    largest_batch: bool = False
    source: str = ""


PRESETS: dict[str, Preset] = {
    "quick": Preset(
        help="128/128 at batch 1 and 8.",
        isl_osl=((128, 128),),
        batch_sizes=(1, 8),
        source="two cells to look at first",
    ),
    "published": Preset(
        help="The lengths of TensorRT-LLM's published tables.",
        isl_osl=PUBLISHED_ISL_OSL,
        batch_sizes=(1, 8, 32, 64),
        largest_batch=True,
        source="lengths of TensorRT-LLM's published tables",
    ),
    "minitron-blog": Preset(
        help="The same lengths at batch 32 and 64, and 32 for the baseline with 64 for the candidate.",
        isl_osl=PUBLISHED_ISL_OSL,
        batch_sizes=(32, 64),
        batch_pairs=((32, 64),),
        source=(
            "arXiv 2408.11796: batch 32 for the 8B and 64 for the 4B; its lengths are only in a figure, so "
            "those of TensorRT-LLM's published tables stand in; beside it both batches for both models"
        ),
    ),
}
