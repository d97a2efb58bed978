"""How the token budget of learned masks is spent."""

from __future__ import annotations

from dataclasses import replace

from compressor.core.errors import UsageError
from compressor.models.dims import Dims
from compressor.planning.schedule import Phase, Schedule, training_schedule
from compressor.recipe.masks import LearnedMasks
from compressor.recipe.recipe import Distill

PUBLISHED_STEPS = 3200
PUBLISHED_BATCH_SIZE = 32
_WARMUP_SHARE = 10


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


def needs_whole_model(distill: Distill, masks: LearnedMasks) -> bool:
    """Whether the model without masks is in memory too, for a loss or for the domains' reference losses."""
    return masks.kl_weight > 0 or distill.dynamic_batches.variant != "off"


def mask_phase(distill: Distill, masks: LearnedMasks, model: Dims) -> Phase:
    """The training as `plan` counts it: all of the model, in one process, its weights as if they trained."""
    return Phase(
        name="prune",
        student=model,
        teacher=model if needs_whole_model(distill, masks) else None,
        schedule=mask_schedule(distill, masks),
        context_length=distill.context_length,
        sharded=False,
        recomputes=distill.activation_checkpointing,
        single_process=True,
    )
