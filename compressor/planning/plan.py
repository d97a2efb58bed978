"""What a run will do, from numbers alone: shapes, memory, disk and hours. No torch, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compressor.choices.formats import FORMATS
from compressor.core.errors import UnsupportedError, UsageError
from compressor.models.dims import (
    Dims,
    flops_per_token,
    kv_cache_bytes_per_token,
    num_parameters,
    weight_bytes,
)
from compressor.planning.cost import Hardware, training_estimate, training_phases
from compressor.planning.schedule import memory_per_gpu
from compressor.planning.target import ResolvedTarget, resolve_shape, resolve_target
from compressor.recipe.recipe import Recipe

SCHEMA = "compress-export/plan/1"
_MODEL_MEMORY = ("weights", "gradients", "optimizer", "teacher")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A resolved run.

    Attributes:
        teacher: Dimensions of the model to compress.
        target: The student and the rule that chose it.
        document: Everything as one JSON document.
    """

    teacher: Dims
    target: ResolvedTarget
    document: dict[str, Any]


def make_plan(
    recipe: Recipe,
    teacher: Dims,
    *,
    hardware: Hardware | None = None,
    out_dir: str = "",
    origin: Dims | None = None,
) -> Plan:
    """Resolve a recipe for a teacher of known dimensions.

    Args:
        recipe: The run.
        teacher: The teacher's dimensions.
        hardware: The stated hardware of hours and costs; by default 8 H100.
        out_dir: Where the run will write.
        origin: The published model that the teacher was itself made from; by default the teacher.

    Raises:
        UsageError: no target, or one that cannot be resolved; an unknown GPU.
    """
    hardware = hardware or Hardware()
    if recipe.prune.shape is not None:
        target = resolve_shape(teacher, recipe.prune.shape)
    elif recipe.target is not None:
        target = resolve_target(teacher, recipe.target)
    else:
        choices = "--target 4b, --target 60%, or prune.shape in a recipe"
        raise UsageError("a run needs a target size", hint=choices)
    training = training_estimate(recipe, teacher, target.student, hardware, origin=origin or teacher)
    document = {
        "schema": SCHEMA,
        "model": recipe.model,
        "target": recipe.target,
        "rule": target.rule,
        "published_shape": target.published,
        "teacher": _describe(teacher),
        "student": _describe(target.student),
        "compression": round(num_parameters(target.student) / num_parameters(teacher), 4),
        "exports": list(recipe.export_formats()),
        "can_be_pruned": teacher.family.prunable,
        "text": {
            "calibration": recipe.calibration.data,
            "training": _training_text(recipe),
            "evaluation": recipe.evaluate.data or f"held-out part of {recipe.distill.mixture()[0].data}",
        },
        "tokens": recipe.distill.tokens,
        "out_dir": out_dir,
        "disk_bytes": _disk(recipe, teacher, target.student),
        "memory_bytes": _memory(recipe, teacher, target.student),
        "hours": _hours(recipe, teacher, target.student, hardware, training),
        "training": training,
    }
    return Plan(teacher=teacher, target=target, document=document)


def require_prunable(teacher: Dims) -> None:
    """Refuse to start what can only be planned.

    Raises:
        UnsupportedError: for a family without pruning support.
    """
    if not teacher.family.prunable:
        raise UnsupportedError(
            f"{teacher.model_type} models can be planned but not pruned yet", hint="plan shows the shape"
        )


def _describe(dims: Dims) -> dict[str, Any]:
    return {
        **dims.to_dict(),
        "weight_bytes": {name: weight_bytes(dims, name) for name in ("fp32", "bf16", "fp8", "int4")},
        "kv_cache_bytes_per_token": kv_cache_bytes_per_token(dims),
        "flops_per_token": flops_per_token(dims),
    }


def _disk(recipe: Recipe, teacher: Dims, student: Dims) -> dict[str, int]:
    """Bytes written per part of the run directory; checkpoints of training count at their peak of two."""
    sixteen = weight_bytes(student, "bf16")
    parts = {"prune": sixteen, "student": sixteen}
    distill = recipe.distill
    if distill.tokens:
        trained = num_parameters(student)
        if distill.correction.mode == "first":
            parts["correct"] = weight_bytes(teacher, "bf16")
            trained = max(trained, num_parameters(teacher))  # one training after the other
        elif distill.correction.mode == "alongside":
            trained += num_parameters(teacher)
        # Any domain may turn out to be the one that dynamic batches draw from.
        num_domains = len(distill.mixture()) + (distill.generate.tokens > 0)
        copies = 1 if distill.dynamic_batches.variant == "off" else num_domains
        parts["distill"] = sixteen
        parts["training_checkpoints"] = 2 * 12 * trained
        parts["tokens"] = 4 * (copies * distill.tokens + distill.generate.tokens)
    if recipe.sparsify.pattern:
        parts["sparsify"] = parts["recover"] = sixteen + sixteen // 16
    if recipe.quantize.fp8:
        parts["quantize"] = sixteen + weight_bytes(student, "fp8")
    for name in recipe.export_formats():
        if name != "huggingface":
            parts[f"exports/{name}"] = weight_bytes(student, FORMATS[name].precisions[0])
    for precision in recipe.bench.read_formats():
        parts[f"benchmark teacher {precision}"] = weight_bytes(teacher, precision)
    return {**parts, "total": sum(parts.values())}


def _memory(recipe: Recipe, teacher: Dims, student: Dims) -> dict[str, int]:
    """Largest model memory per stage, activations left out."""
    teacher_bytes = weight_bytes(teacher, "bf16")
    memory = {"prune": teacher_bytes}
    for phase in training_phases(recipe, teacher, student):
        parts = memory_per_gpu(phase, 1, recomputes=phase.recomputes)
        memory[phase.name] = sum(parts[name] for name in _MODEL_MEMORY)
    if recipe.quantize.fp8:
        memory["quantize"] = weight_bytes(student, "bf16")
    memory["verify"] = 2 * weight_bytes(student, "fp32")
    return memory


def _hours(
    recipe: Recipe, teacher: Dims, student: Dims, hardware: Hardware, training: dict[str, Any] | None
) -> dict[str, Any]:
    """Hours on the stated hardware: calibration by its forward FLOPs, then every training."""
    context = recipe.calibration.seq_len // 2
    tokens = recipe.calibration.size * recipe.calibration.seq_len
    flops = tokens * flops_per_token(teacher, context)
    if recipe.quantize.fp8:
        flops += tokens * flops_per_token(student, context)
    rate = hardware.device.bf16_flops_per_s * hardware.utilisation * hardware.num_gpus
    calibration = flops / rate / 3600
    rows = training["by_num_gpus"] if training else []
    trained = [row["phase_hours"] for row in rows if row["num_gpus"] == hardware.num_gpus]
    phases: dict[str, float] = trained[0] if trained else {"distill": 0.0}
    gpu_hours = (calibration + sum(phases.values())) * hardware.num_gpus
    return {
        "hardware": f"{hardware.num_gpus} x {hardware.device.name}",
        "assumed_utilisation": hardware.utilisation,
        "calibration": round(calibration, 4),
        **phases,
        "gpu_hours": round(gpu_hours, 3),
        "cost_usd": round(gpu_hours * hardware.price, 2),
        "not_included": "loading, evaluation, export, benchmark",
    }


def _training_text(recipe: Recipe) -> str:
    """The training text, or every domain with its weight."""
    domains = recipe.distill.domains
    if not domains:
        return recipe.distill.data
    return ", ".join(f"{domain.name}={domain.data}@{domain.weight:g}" for domain in domains)
