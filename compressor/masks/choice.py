"""What can be chosen about learned masks, checked without torch."""

from __future__ import annotations

from dataclasses import replace

from compressor.choices.importance import IMPORTANCE_METHODS
from compressor.core.errors import UnsupportedError, UsageError
from compressor.core.processes import world_size
from compressor.planning.schedule import Schedule, training_schedule
from compressor.recipe.masks import LearnedMasks
from compressor.recipe.recipe import Distill, Prune

PUBLISHED_STEPS = 3200
PUBLISHED_BATCH_SIZE = 32
_WARMUP_SHARE = 10


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


def _changed(settings: Prune | LearnedMasks, usual: Prune | LearnedMasks, section: str) -> list[str]:
    names = type(settings).model_fields
    return [f"{section}.{name}" for name in names if getattr(settings, name) != getattr(usual, name)]


def mask_budget(distill: Distill, masks: LearnedMasks) -> Distill:
    """Distillation's settings with the masks' budget, batch and rate of weights; layers are not compiled.

    The published training has 3200 steps of 32 sequences; a smaller budget keeps the steps, with smaller
    batches.
    """
    num_windows = masks.tokens // distill.context_length
    batch_size = masks.batch_size or max(1, min(PUBLISHED_BATCH_SIZE, num_windows // PUBLISHED_STEPS))
    own = {"tokens": masks.tokens, "batch_size": batch_size, "learning_rate": masks.weight_learning_rate}
    return distill.model_copy(update={**own, "compile": "off"})


def mask_schedule(distill: Distill, masks: LearnedMasks) -> Schedule:
    """Steps and batches, a tenth of the steps warming the learning rates up.

    Raises:
        UsageError: when the budget does not fill one sequence.
    """
    try:
        steps = training_schedule(mask_budget(distill, masks), processes=1)
    except UsageError as error:
        raise UsageError(
            "the token budget of the masks does not fill one training sequence",
            where="--mask-tokens",
            expected=error.expected,
            found=error.found,
            hint="raise --mask-tokens, or lower --context-length",
        ) from error
    return replace(steps, warmup_steps=steps.steps // _WARMUP_SHARE)


def target_warmup_steps(masks: LearnedMasks, max_steps: int) -> int:
    """Steps over which the target rises."""
    return int(masks.target_warmup * max_steps)
