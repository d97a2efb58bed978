"""What a recipe alone is refused for, without torch: choices that contradict each other or have no effect."""

from __future__ import annotations

from compressor.choices.formats import FORMATS
from compressor.choices.sparsity import SPARSITY_METHODS
from compressor.core.errors import UnsupportedError, UsageError
from compressor.distillation.requirements import require_stored_temperature
from compressor.masks.choice import require_mask_choices
from compressor.pipeline.gate_choices import require_gate_choices
from compressor.planning.cuts import require_interleavable
from compressor.pruning.saved import scores_file
from compressor.quantization.requirements import require_cache_scales
from compressor.recipe.recipe import Recipe, Repair, Section, Sparsify
from compressor.recipe.training import Correction, Distill, DynamicBatches, Generate
from compressor.repair.requirements import require_sequences, require_steps_alone


def require_consistent(recipe: Recipe) -> None:
    """Refuse, before any work, choices that contradict each other.

    Raises:
        UsageError: naming them.
        DependencyError: for an FP8 cache that the installed ModelOpt cannot write.
    """
    require_gate_choices(recipe)
    require_mask_choices(recipe.prune, recipe.masks)
    scores_file(recipe.prune)
    require_interleavable(recipe)
    if recipe.distill.teacher_logits is not None:
        require_stored_temperature(recipe.distill)
    if recipe.repair.enabled:
        require_sequences(recipe.calibration.size)
        has_branches = recipe.sparsify.pattern is not None and recipe.sparsify.slorb != "off"
        require_steps_alone(recipe.repair.steps, has_branches=has_branches)
    else:
        _refuse_idle(
            "repair", recipe.repair, Repair(method="off"), "--repair is off", "--repair least-squares"
        )
    _require_effect(recipe.distill)
    if recipe.sparsify.pattern is None:
        _refuse_idle("sparsify", recipe.sparsify, Sparsify(), "no model is made sparse", "--sparsity 2:4")
    if recipe.quantize.fp8:
        require_cache_scales(recipe.quantize)
        return
    if recipe.repair.fp8:
        raise UsageError(
            "no model is quantized, so this choice has no effect",
            where="repair.fp8",
            hint="add --fp8 (quantize.fp8: true), or leave out --repair-fp8",
        )
    quantised = [name for name in recipe.export_formats() if FORMATS[name].needs_fp8]
    if quantised or recipe.quantize.fp8_kv_cache:
        raise UsageError(
            f"{', '.join(quantised) or '--fp8-kv-cache'} needs FP8 quantization, which is off",
            where="export.formats" if quantised else "quantize.fp8_kv_cache",
            hint="add --fp8 (quantize.fp8: true), or leave it out",
        )


def _require_effect(distill: Distill) -> None:
    """Refuse settings of what the distillation does not do."""
    if distill.correction.mode == "off":
        why, cure = "the teacher is not corrected", "--teacher-correction first"
        _refuse_idle("distill.correction", distill.correction, Correction(), why, cure)
    if not distill.generate.tokens:
        why, cure = "no text is sampled", "--generate-tokens 10m"
        _refuse_idle("distill.generate", distill.generate, Generate(), why, cure)
    if distill.dynamic_batches.variant == "off":
        why, cure = "texts are not sampled by their loss", "--dynamic-batches clipped"
        _refuse_idle("distill.dynamic_batches", distill.dynamic_batches, DynamicBatches(), why, cure)
    elif len(distill.mixture()) + bool(distill.generate.tokens) == 1:
        raise UsageError(
            "there is only one training text, so how texts are sampled by their loss has no effect",
            where="--dynamic-batches",
            hint="give several with --domain NAME=SOURCE, or leave it out",
        )


def _refuse_idle(section: str, chosen: Section, usual: Section, why: str, cure: str) -> None:
    names = type(usual).model_fields
    idle = [f"{section}.{name}" for name in names if getattr(chosen, name) != getattr(usual, name)]
    if idle:
        raise UsageError(
            f"{why}, so these choices have no effect",
            where=", ".join(idle),
            hint=f"leave them out, or add {cure}",
        )


def require_sparsifiable(recipe: Recipe) -> None:
    """Refuse, before any work, a sparse run that could not reach its end.

    Raises:
        UsageError: for adaptive training without tokens.
        UnsupportedError: for a low-rank branch and an export that cannot carry it.
    """
    sparsify = recipe.sparsify
    if sparsify.pattern is None:
        return
    if SPARSITY_METHODS[sparsify.method].trains and not recipe.recovery_tokens():
        raise UsageError(
            f"the sparsity method {sparsify.method} trains, and has no tokens to train on",
            where="--recovery-tokens",
            found=0,
            hint="set --recovery-tokens or --tokens to at least one sequence of --context-length tokens",
        )
    others = [name for name in recipe.export_formats() if name != "huggingface"]
    if sparsify.slorb != "off" and (others or recipe.quantize.fp8):
        raise UnsupportedError(
            "these exports cannot carry the low-rank branch of a sparse model",
            found=", ".join(others) or "--fp8",
            hint="use --formats huggingface without --fp8, or --slorb off (merging it would fill the zeros)",
        )
