"""What is asked of scores that an earlier prune saved."""

from __future__ import annotations

from pathlib import Path

from compressor.choices.importance import IMPORTANCE_FILE
from compressor.core.errors import UsageError
from compressor.recipe.compression import Prune

_MEASURED = ("importance", "batch_aggregation", "sequence_aggregation")


def scores_file(prune: Prune) -> Path | None:
    """The file of the saved scores; None where importance is measured."""
    return Path(prune.scores) / IMPORTANCE_FILE if prune.scores is not None else None


def require_scores(prune: Prune) -> None:
    """Refuse, before any work, saved scores that are not there, or a choice of how to measure them beside.

    Raises:
        UsageError: naming them.
    """
    scores = scores_file(prune)
    if scores is None:
        return
    if not scores.is_file():
        raise UsageError(
            "there are no saved scores",
            where=str(scores),
            hint=f"give --scores a directory in which `compress-export prune` left {IMPORTANCE_FILE}",
        )
    unused = [name for name in _MEASURED if getattr(prune, name) != getattr(Prune(), name)]
    if unused:
        raise UsageError(
            "saved scores are not measured again, so these choices have no effect",
            where=", ".join(f"prune.{name}" for name in unused),
            hint="leave them out, or leave out --scores",
        )
