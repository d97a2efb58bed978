"""What can be chosen about scores, checked without torch."""

from __future__ import annotations

from pathlib import Path

from compressor.choices.importance import IMPORTANCE_METHODS
from compressor.core.errors import UsageError
from compressor.recipe.compression import Prune

IMPORTANCE_FILE = "importance.safetensors"
_AGGREGATIONS = ("batch_aggregation", "sequence_aggregation")


def scores_file(settings: Prune) -> Path | None:
    """The file of saved scores that is used instead of measuring, if any.

    Raises:
        UsageError: for scores that are not there, or beside a choice of how to measure them; for a choice of
            aggregations beside a method that aggregates no activations.
    """
    scores = Path(settings.scores) / IMPORTANCE_FILE if settings.scores else None
    if scores and not scores.is_file():
        raise UsageError(
            "there are no saved scores",
            where=str(scores),
            hint=f"give --scores a directory in which `compress-export prune` left {IMPORTANCE_FILE}",
        )
    aggregated = [name for name in _AGGREGATIONS if getattr(settings, name) != getattr(Prune(), name)]
    measured = [*(["importance"] if settings.importance != Prune().importance else []), *aggregated]
    if scores and measured:
        raise UsageError(
            "saved scores are not measured again, so these choices have no effect",
            where=", ".join(f"prune.{name}" for name in measured),
            hint="leave them out, or leave out --scores",
        )
    if aggregated and not IMPORTANCE_METHODS[settings.importance].aggregates:
        raise UsageError(
            f"{settings.importance} aggregates no activations, so these choices have no effect",
            where=", ".join(f"prune.{name}" for name in aggregated),
            hint="leave them out, or use --importance activation",
        )
    return scores
