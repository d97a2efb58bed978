"""The prune stage of learned masks: train them, keep the best units of every row, fold, slice.

After Sheared LLaMA (arXiv 2310.06694, first stage). Departures, beside those in `gates` and `constraint`:
one draw of the masks per optimizer step; grouped-query attention, with equally many query heads of every
key/value group; masks of query heads are folded into o_proj, because heads share their values. It leaves what
pruning leaves, and beside it the final masks, digests and probes from memory.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from compressor.core.errors import UnsupportedError
from compressor.data.sources import source_fingerprint
from compressor.distillation.choice import describe
from compressor.distillation.criterion import LossConfig
from compressor.distillation.distill_stage import dynamic_batches
from compressor.distillation.training import (
    SCRATCH,
    Training,
    load,
    load_trainable,
    schedule,
    training_content,
)
from compressor.masks.applied import MaskValues, fold_, kept_mask, masked
from compressor.masks.mask_set import MaskSet
from compressor.masks.module import MaskedModule, MaskTraining
from compressor.masks.record import write_final_masks
from compressor.models.checkpoint import CheckpointReader, read_config, write_checkpoint
from compressor.models.config.portable import write_config
from compressor.models.digests import tensor_digest, write_digests
from compressor.models.dims import PRUNABLE_FIELDS, Dims, check_shape, dims_of_config
from compressor.models.shapes import is_parameter
from compressor.models.sparse.low_rank import refuse_adapter
from compressor.models.tokenizer_files import copy_tokenizer
from compressor.planning.mask_schedule import (
    mask_budget,
    mask_schedule,
    needs_whole_model,
    target_warmup_steps,
)
from compressor.pruning.plan import PrunePlan
from compressor.pruning.slicing import kept_channels, slice_checkpoint
from compressor.recipe.masks import LearnedMasks
from compressor.recipe.option import content_of
from compressor.recipe.recipe import Distill, Section
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import Stage, StageContext, StageResult
from compressor.training.probes import take_probes, write_probes
from compressor.training.sharding import stored_tensors

METHOD = "learned-masks"
_FOLDED = "folded"
# A row whose expected count is further than this share of its units from the target has not settled.
_SETTLED = 0.05


class LearnStageConfig(Section):
    """The student's resolved shape, how masks are learned, and on which text."""

    shape: dict[str, int]
    masks: LearnedMasks
    distill: Distill


def learn_config(student: Dims, masks: LearnedMasks, distill: Distill) -> LearnStageConfig:
    """The configuration that makes this student."""
    shape = {name: getattr(student, name) for name in PRUNABLE_FIELDS}
    return LearnStageConfig(shape=shape, masks=masks, distill=distill)


def run(config: LearnStageConfig, source: ModelArtifact, out_dir: Path, context: StageContext) -> StageResult:
    """Learn masks on `source` and write the student that they leave.

    Raises:
        UsageError: when the budget or a text does not fill one sequence, or nothing is to be removed.
        UnsupportedError: for a family that cannot be pruned, or a shape that its class refuses.
    """
    dims = dims_of_config(read_config(source.path))
    student = dims.with_shape(**config.shape)
    _require_maskable(dims, student, source.path)
    settings = mask_budget(config.distill, config.masks)
    plan = schedule(
        settings,
        seed=context.seed,
        device=context.device,
        dtype=context.dtype,
        steps=mask_schedule(config.distill, config.masks),
    )
    masks = MaskSet(dims, student, kind=config.masks.kind, seed=context.seed).to(context.device)
    is_trained = config.masks.weights == "trained"
    domains = settings.mixture()
    training = Training(
        settings, domains, source, out_dir, context, plan=plan, trained=[source] if is_trained else []
    )
    module = _module(config, masks, source, context, max_steps=plan.max_steps)
    dynamic = dynamic_batches(training, module)
    extension = MaskTraining(module, learning_rate=config.masks.mask_learning_rate)
    with masked(module.student, lambda: module.values):
        log = training.fit_(
            module,
            teacher=None if module.teacher is None else source,
            extensions=[extension, *dynamic],
        )
        chosen = masks.plan(METHOD)
        final = masks.final(chosen)
        num_parameters = _write(module, chosen, final, source, out_dir, context)
    removed = sorted(set(range(dims.num_hidden_layers)) - set(chosen.layers))
    details = {
        "removed_layers": removed,
        "importance": METHOD,
        "loss": describe(module.loss),
        "masks": _settled(masks, context),
        **training.report(log),
    }
    for each in dynamic:
        details["dynamic_batches"] = each.report()
    return StageResult(num_parameters=num_parameters, details=details, scratch=SCRATCH)


def _require_maskable(dims: Dims, student: Dims, source: Path) -> None:
    if not dims.family.prunable:
        raise UnsupportedError(
            f"{dims.model_type} models can be planned but not pruned yet",
            where=str(source),
            hint="use `compress-export plan`, which shows the student's shape",
        )
    refuse_adapter(source, by="pruning")
    check_shape(student)


def _module(
    config: LearnStageConfig, masks: MaskSet, source: ModelArtifact, context: StageContext, *, max_steps: int
) -> MaskedModule:
    """The model under masks, beside itself without them where a loss compares the two."""
    needs_teacher = needs_whole_model(config.distill, config.masks)
    student = load_trainable(source, context)
    student.requires_grad_(requires_grad=config.masks.weights == "trained")
    return MaskedModule(
        student,
        load(source, context.dtype, context) if needs_teacher else None,
        LossConfig(kl_weight=config.masks.kl_weight),
        masks,
        max_steps=max_steps,
        warmup_steps=target_warmup_steps(config.masks, max_steps),
    )


def _settled(masks: MaskSet, context: StageContext) -> dict[str, object]:
    """How near the expected numbers of units came to the shape; warns where they did not."""
    misses = masks.largest_misses(progress=1.0)
    units = {name: masks.gates[name].get_parameter("raw").shape[1] for name in misses}
    far = [name for name, miss in misses.items() if miss > _SETTLED * units[name]]
    if far:
        context.console.warn(
            f"the masks of {', '.join(far)} did not settle at the student's shape, which was cut by their "
            "order instead; raise --mask-tokens or --mask-learning-rate"
        )
    return {"largest_misses": misses}


def _write(
    module: MaskedModule,
    plan: PrunePlan,
    values: MaskValues,
    source: ModelArtifact,
    out_dir: Path,
    context: StageContext,
) -> int:
    """Fold masks into the weights in memory, record what these are and compute, and write the kept part.

    Returns its number of parameters.
    """
    student: Any = module.student
    dtype: torch.dtype = getattr(torch, context.dtype)
    fold_(student, values)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(parameter.to(dtype).to(parameter.dtype))
    # Its removed units are masked still, and its norms go over the kept channels: it is the student.
    module.values = kept_mask(plan)
    write_probes(out_dir, take_probes(module, compute_dtype="float32"))
    write_digests(out_dir, _digests(student, plan, dtype))
    plan.write(out_dir)
    write_final_masks(out_dir, values)
    folded = out_dir / _FOLDED
    folded.mkdir()
    _write_whole(student, source.path, folded, dtype)
    with context.console.progress("slicing", len(dict(student.named_parameters()))) as tick:
        num_parameters = slice_checkpoint(folded, plan, out_dir, dtype=dtype, on_tensor=tick)
    shutil.rmtree(folded)
    copy_tokenizer(source.path, out_dir)
    return num_parameters


def _digests(student: Any, plan: PrunePlan, dtype: torch.dtype) -> dict[str, str]:
    """Of every tensor of the student, taken from the whole model in memory."""
    layers, digests = plan.source.family.layers, {}
    for name, (weight, layer) in plan.source.weights().items():
        if layer is not None and layer not in plan.layers:
            continue
        tensor: torch.Tensor = student.get_parameter(name).detach().cpu()
        for dim, axes in enumerate(
            (tuple(weight.rows.values()), (weight.columns,) if weight.columns else ())
        ):
            channels = kept_channels(plan, axes, layer) if axes else None
            tensor = tensor if channels is None else tensor.index_select(dim, channels)
        own = name if layer is None else f"{layers}.{plan.layers.index(layer)}.{weight.name}"
        digests[own] = tensor_digest(tensor.to(dtype))
    return digests


def _write_whole(student: Any, source: Path, directory: Path, dtype: torch.dtype) -> None:
    """The folded model before slicing, in the source's order."""
    dims = dims_of_config(read_config(source))
    with CheckpointReader(source) as reader:
        names = [name for name in reader if is_parameter(name, dims)]
    write_checkpoint(directory, stored_tensors(student, names, dtype))
    write_config(directory, read_config(source))


def _content(config: LearnStageConfig) -> dict[str, object]:
    """The shape, the masks, and distillation's text without its budget, batch and rate."""
    distill = training_content(config.distill, "min_learning_rate_ratio", "dynamic_batches", trains=False)
    for name in ("tokens", "batch_size"):
        del distill[name]
    return {"shape": config.shape, "masks": content_of(config.masks), "distill": distill}


LEARN: Stage[LearnStageConfig] = Stage(
    name="prune-masks",
    run=run,
    libraries=("torch", "transformers", "accelerate"),
    content=_content,
    data=lambda config: tuple(domain.data for domain in config.distill.mixture()),
    fingerprint=source_fingerprint,
)
