"""What a search found: every shape that was tried, ranked, and why the first one won.

The winner has the lowest loss after repair and the same short distillation among the shapes that are about
as fast as the default rule's. The loss right after pruning is not looked at: it ranks shapes in another
order than the loss after a short training does (arXiv 2407.14679, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from bench.report.results import Rates
from compressor.core.records import Record
from compressor.evaluation.record import EvaluationProtocol
from compressor.models.dims import Dims
from compressor.planning.search_space import Excluded

SEARCH_FILE = "search.json"
# As far as a size without a search may be from its target: what differs by less counts as as fast.
SPEED_MARGIN = 0.02


class MeasuredShape(Record):
    """One shape that was tried.

    Attributes:
        name: Layers, hidden size, intermediate size and heads.
        predicted_speedup: Over the teacher, by the roofline: geometric mean over the cells.
        perplexity_repaired: After the repair and before any training; None without a repair.
        perplexity: After the repair and the short distillation.
        mean_nll: The same as mean negative log-likelihood, in nats.
    """

    name: str
    shape: Dims
    num_parameters: int
    predicted_speedup: float
    perplexity_repaired: float | None
    perplexity: float
    mean_nll: float


class RankedShape(MeasuredShape):
    """A shape with its place.

    Attributes:
        rank: 1 for the winner; shapes that are too slow come last.
        is_default: Whether the default rule gives it.
        is_fast_enough: Whether it is slower than the default rule's by no more than the margin.
        is_on_pareto_front: Whether no other shape is better in speed or loss and at least as good in both.
    """

    rank: int
    is_default: bool
    is_fast_enough: bool
    is_on_pareto_front: bool


class SearchRecord(Record):
    """`search.json`.

    Attributes:
        tokens: Training tokens of each shape.
        reference_speedup: The predicted speed-up of the default rule's shape.
        cells: What the speed is predicted for: input length, output length, batch size.
        rates: What this machine reads and multiplies per second, measured.
        shapes: Every shape that was tried, the winner first.
    """

    schema_id: Literal["compress-export/search/1"] = Field("compress-export/search/1", alias="schema")
    target: str
    requested_parameters: int
    tolerance: float
    num_shapes: int
    excluded: tuple[Excluded, ...]
    default: Dims
    tokens: int
    speed_margin: float = SPEED_MARGIN
    reference_speedup: float
    precision: str
    cells: tuple[tuple[int, int, int], ...]
    rates: Rates
    protocol: EvaluationProtocol
    shapes: tuple[RankedShape, ...]

    @property
    def winner(self) -> RankedShape:
        """The shape that a run takes."""
        return self.shapes[0]

    @property
    def reason(self) -> str:
        """Why the winner has its shape, in a sentence without a full stop."""
        won = self.winner
        return (
            f"searched for {self.requested_parameters:,}, found {won.num_parameters:,} "
            f"({won.num_parameters / self.requested_parameters - 1:+.2%}): the lowest loss after repair and "
            f"{self.tokens:,} tokens of distillation among {len(self.shapes)} of {self.num_shapes:,} shapes, "
            f"no slower than the default rule's by more than {self.speed_margin:.0%} as predicted"
        )


def rank(
    measured: Sequence[MeasuredShape], *, default: Dims, reference_speedup: float
) -> tuple[RankedShape, ...]:
    """All shapes: those that are fast enough by their loss, then the others by theirs.

    Where none is fast enough, the fastest ones of equal speed are: a search always has a winner.
    """
    least = min(reference_speedup * (1 - SPEED_MARGIN), max(one.predicted_speedup for one in measured))
    order = sorted(measured, key=lambda one: (one.predicted_speedup < least, one.mean_nll, one.name))
    return tuple(
        RankedShape(
            **one.model_dump(exclude={"shape"}),
            shape=one.shape,
            rank=position,
            is_default=one.shape == default,
            is_fast_enough=one.predicted_speedup >= least,
            is_on_pareto_front=not any(_dominates(other, one) for other in measured),
        )
        for position, one in enumerate(order, start=1)
    )


def _dominates(one: MeasuredShape, other: MeasuredShape) -> bool:
    gains = (one.predicted_speedup - other.predicted_speedup, other.mean_nll - one.mean_nll)
    return min(gains) >= 0 and max(gains) > 0


def rows_of(record: SearchRecord) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    """Title, header and rows of the table of all shapes."""
    title = (
        f"Shapes tried ({record.tokens:,} tokens each; speed-up over the teacher predicted by the roofline "
        f"in {record.precision})"
    )
    header = (
        *("rank", "shape", "parameters", "predicted speed-up", "perplexity after repair"),
        *("after distillation", "Pareto front", "note"),
    )
    rows = [
        (
            str(one.rank),
            one.name,
            f"{one.num_parameters:,}",
            f"{one.predicted_speedup:.3f}x",
            "-" if one.perplexity_repaired is None else f"{one.perplexity_repaired:.2f}",
            f"{one.perplexity:.2f}",
            "yes" if one.is_on_pareto_front else "no",
            _note(one),
        )
        for one in record.shapes
    ]
    return title, header, rows


def _note(one: RankedShape) -> str:
    notes = ["default rule"] if one.is_default else []
    notes += [] if one.is_fast_enough else ["too slow"]
    return ", ".join(notes)
