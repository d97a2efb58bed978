"""The recover stage: train a sparse student on its teacher, its mask fixed or moving.

Weight of KL and temperature are the Adaptive Sparse Trainer's (arXiv 2407.20584); all else about the loss,
the trainer, its data and its resume are distillation's. States are compared only where the recipe says so.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from compressor.choices.sparsity import SPARSITY_METHODS
from compressor.core.errors import UsageError
from compressor.core.processes import is_main
from compressor.data.sources import source_fingerprint
from compressor.distillation.choice import describe
from compressor.distillation.criterion import OFF
from compressor.distillation.distill_stage import chosen_losses, dynamic_batches, training_domains
from compressor.distillation.module import DistillationModule
from compressor.distillation.training import SCRATCH, Training, load, refuse_unfit_teacher, training_content
from compressor.models.sparse.layers import SparseLinear, install_sparse_layers_
from compressor.models.sparse.low_rank import AdapterBranch, has_adapter, read_adapter, write_adapter
from compressor.models.sparse.record import MASKS_FILE, SparsityRecord, read_masks, read_sparsity, write_masks
from compressor.recipe.option import content_of, fields_of
from compressor.recipe.recipe import Distill, Section, Sparsify
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import Stage, StageContext, StageResult
from compressor.sparsity.adaptive import FixedMasks, MovingMasks
from compressor.training.sharding import whole

PUBLISHED_MASK_INTERVAL = 10
# A short run selects its mask this often, and its decay grows over this share of it (10k of 40k steps).
MIN_SELECTIONS = 40
RAMP_SHARE = 0.25
# Distillation's choices about the loss that this training follows.
FOLLOWED_LOSSES = (
    *("loss", "top_k", "top_k_tail", "kl_weighting", "hidden_state_loss", "embedding_loss", "layer_pairs"),
)


class RecoverStageConfig(Section):
    """The sections of a recipe that decide this stage."""

    distill: Distill
    sparsify: Sparsify

    def training(self) -> Distill:
        """Distillation's settings with recovery's own laid over them."""
        own: dict[str, object] = {name: getattr(self.sparsify, name) for name in ("temperature", "kl_weight")}
        for name in ("tokens", "learning_rate"):
            if getattr(self.sparsify, name) is not None:
                own[name] = getattr(self.sparsify, name)
        if self.distill.hidden_state_loss == "auto":
            own |= {"hidden_state_loss": OFF, "layer_pairs": None}
        return self.distill.model_copy(update=own)


def moving_schedule(sparsify: Sparsify, max_steps: int) -> tuple[int, int]:
    """Steps between mask selections, and steps of the decay's ramp, scaled to the run's length."""
    interval = sparsify.mask_interval or max(1, min(PUBLISHED_MASK_INTERVAL, max_steps // MIN_SELECTIONS))
    return interval, sparsify.decay_ramp_steps or max(1, int(max_steps * RAMP_SHARE))


def run(
    config: RecoverStageConfig, source: ModelArtifact, out_dir: Path, context: StageContext
) -> StageResult:
    """Train a sparsified checkpoint; its pattern holds exactly at the end.

    Raises:
        UsageError: for a checkpoint without masks, or without a teacher.
        UnsupportedError: when the vocabularies differ.
    """
    sparsity = read_sparsity(source.path)
    if sparsity is None or context.teacher is None:
        what = "a sparsified checkpoint" if sparsity is None else "a teacher"
        hint = "make one with `compress-export sparsify`" if sparsity is None else "add --teacher MODEL"
        raise UsageError(f"training a sparse model needs {what}", where=str(source.path), hint=hint)
    refuse_unfit_teacher(source, context.teacher, trust_remote_code=context.trust_remote_code)
    settings = config.training()
    training = Training(settings, training_domains(settings, context), source, out_dir, context)
    student = load(source, "float32", context)
    extension = _prepare_(student, source.path, sparsity, config.sparsify, training.plan.max_steps)
    choice = chosen_losses(settings, source, context)
    module = DistillationModule(student, load(context.teacher, context.dtype, context), choice.loss)
    dynamic = dynamic_batches(training, module)
    log = training.fit_(module, teacher=context.teacher, extensions=[extension, *dynamic])
    extension.apply_()
    branches, masks = _branches(extension.layers), extension.masks()
    if is_main():
        sparsity.write(out_dir)
        write_masks(out_dir / MASKS_FILE, masks)
        if branches:
            write_adapter(out_dir, branches)
    before = read_masks(source.path / MASKS_FILE, sparsity.shapes)
    details = {
        "loss": describe(choice.loss),
        **_details(config.sparsify, training.plan.max_steps, before, masks, branches),
        **training.save(module, log, branches=branches),
    }
    for each in dynamic:
        details["dynamic_batches"] = each.report()
    return StageResult(num_parameters=source.num_parameters, details=details, scratch=SCRATCH)


def _prepare_(
    student: nn.Module, directory: Path, sparsity: SparsityRecord, sparsify: Sparsify, max_steps: int
) -> FixedMasks:
    """Put masks and branches into a loaded student and make it trainable."""
    is_moving = SPARSITY_METHODS[sparsify.method].trains
    branches = read_adapter(directory) if has_adapter(directory) else {}
    masks = read_masks(directory / MASKS_FILE, sparsity.shapes)
    layers = install_sparse_layers_(student, masks=masks, straight_through=is_moving, branches=branches)
    student.requires_grad_(requires_grad=True).train()
    for layer in layers.values():
        for parameter in (layer.slorb_down, layer.slorb_up):
            if parameter is not None:
                parameter.requires_grad = sparsify.slorb == "trained"
    if not is_moving:
        return FixedMasks(layers)
    interval, ramp_steps = moving_schedule(sparsify, max_steps)
    return MovingMasks(
        layers,
        pattern=sparsity.pattern,
        interval=interval,
        mask_decay=sparsify.mask_decay,
        ramp_steps=ramp_steps,
    )


def _branches(layers: dict[str, SparseLinear]) -> dict[str, AdapterBranch]:
    """The low-rank branches, whole; every process must take part."""
    found = {name.removesuffix(".weight"): layer.branch() for name, layer in layers.items()}
    return {
        name: AdapterBranch(down=whole(branch.down), up=whole(branch.up))
        for name, branch in found.items()
        if branch is not None
    }


def _details(
    sparsify: Sparsify,
    max_steps: int,
    before: dict[str, torch.Tensor],
    masks: dict[str, torch.Tensor],
    branches: dict[str, AdapterBranch],
) -> dict[str, object]:
    num_moved = sum(int((before[name] & ~mask.cpu()).sum()) for name, mask in masks.items())
    num_kept = sum(int(mask.sum()) for mask in before.values())
    is_moving = SPARSITY_METHODS[sparsify.method].trains
    details: dict[str, object] = {
        "masks": "moving" if is_moving else "fixed",
        "moved_share": round(num_moved / num_kept, 6),
    }
    if is_moving:
        interval, ramp_steps = moving_schedule(sparsify, max_steps)
        details |= {"mask_interval": interval, "decay_ramp_steps": ramp_steps}
    if branches:
        details["adapter_parameters"] = sum(branch.num_parameters for branch in branches.values())
    return details


_SPARSIFY_FIELDS = (
    *("method", "slorb", "tokens", "learning_rate", "kl_weight", "temperature"),
    *("mask_interval", "mask_decay", "decay_ramp_steps"),
)


def _content(config: RecoverStageConfig) -> dict[str, object]:
    """Distillation's text, steps and losses; how sampled text was made is in the fingerprint of that text."""
    distill = training_content(config.distill, "dynamic_batches", *FOLLOWED_LOSSES)
    return {
        "distill": {**distill, "generate": fields_of(content_of(config.distill.generate), "weight")},
        "sparsify": fields_of(content_of(config.sparsify), *_SPARSIFY_FIELDS),
    }


RECOVER: Stage[RecoverStageConfig] = Stage(
    name="recover",
    run=run,
    format_version=3,
    libraries=("torch", "transformers", "accelerate"),
    content=_content,
    data=lambda config: tuple(domain.data for domain in config.distill.mixture()),
    fingerprint=source_fingerprint,
    parallel=True,
)
