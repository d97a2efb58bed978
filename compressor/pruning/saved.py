"""Scores that an earlier prune saved, found without torch."""

from __future__ import annotations

from pathlib import Path

from compressor.core.errors import UsageError
from compressor.recipe.compression import Prune

IMPORTANCE_FILE = "importance.safetensors"
_MEASURED = ("importance", "batch_aggregation", "sequence_aggregation")


def scores_file(settings: Prune) -> Path | None:
    """The file of saved scores that is used instead of measuring, if any.

    Raises:
        UsageError: for scores that are not there, or beside a choice of how to measure them.
    """
    scores = Path(settings.scores) / IMPORTANCE_FILE if settings.scores else None
    if scores and not scores.is_file():
        raise UsageError(
            "there are no saved scores",
            where=str(scores),
            hint=f"give --scores a directory in which `compress-export prune` left {IMPORTANCE_FILE}",
        )
    measured = [name for name in _MEASURED if getattr(settings, name) != getattr(Prune(), name)]
    if scores and measured:
        raise UsageError(
            "saved scores are not measured again, so these choices have no effect",
            where=", ".join(f"prune.{name}" for name in measured),
            hint="leave them out, or leave out --scores",
        )
    return scores
