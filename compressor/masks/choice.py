"""What can be chosen about learned masks, checked without torch."""

from __future__ import annotations

from compressor.choices.importance import IMPORTANCE_METHODS
from compressor.core.errors import UnsupportedError, UsageError
from compressor.core.processes import world_size
from compressor.models.dims import Dims
from compressor.recipe.masks import LearnedMasks
from compressor.recipe.recipe import Prune


def learns_masks(prune: Prune) -> bool:
    """Whether units are chosen by training masks."""
    return IMPORTANCE_METHODS[prune.importance].trains


def require_mask_choices(prune: Prune, masks: LearnedMasks) -> None:
    """Refuse choices that would have no effect on how units are chosen.

    Raises:
        UsageError: for options of masks without them, or of scores beside masks; a rate of frozen weights.
        UnsupportedError: for masks in several processes.
    """
    if not learns_masks(prune):
        chosen = _changed(masks, LearnedMasks(), "masks")
        if chosen:
            raise UsageError(
                "no masks are learned, so these choices have no effect",
                where=", ".join(chosen),
                hint="add --importance learned-masks (prune.importance), or leave them out",
            )
        return
    chosen = _changed(prune, Prune(importance=prune.importance, shape=prune.shape), "prune")
    if chosen:
        raise UsageError(
            "masks are learned instead of scores being measured, so these choices have no effect",
            where=", ".join(chosen),
            hint="leave them out, or choose another --importance",
        )
    if masks.weights == "frozen" and masks.weight_learning_rate != LearnedMasks().weight_learning_rate:
        raise UsageError(
            "frozen weights have no learning rate",
            where="--mask-weight-learning-rate",
            hint="leave it out, or use --mask-weights trained",
        )
    if world_size() > 1:
        raise UnsupportedError(
            "masks are learned in one process only",
            where="--importance learned-masks",
            expected=1,
            found=f"{world_size()} processes",
            hint="prune without torchrun, then train the student with it",
        )


def require_maskable(source: Dims, student: Dims) -> None:
    """Refuse a student that masks do not lead to: they choose query heads of every key/value head.

    Raises:
        UnsupportedError: for a student with fewer key/value heads.
    """
    if student.num_key_value_heads != source.num_key_value_heads:
        raise UnsupportedError(
            "learned masks keep every key/value head",
            where="num_key_value_heads",
            expected=source.num_key_value_heads,
            found=student.num_key_value_heads,
            hint="choose a shape with as many key/value heads as the model, or another --importance",
        )


def _changed(settings: Prune | LearnedMasks, usual: Prune | LearnedMasks, section: str) -> list[str]:
    names = type(settings).model_fields
    return [f"{section}.{name}" for name in names if getattr(settings, name) != getattr(usual, name)]
