"""What a run will do, from numbers alone: shapes, memory, disk and hours. No torch, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compressor.errors import UnsupportedError, UsageError
from compressor.hardware import GPUS
from compressor.models.dims import (
    Dims,
    flops_per_token,
    kv_cache_bytes_per_token,
    num_parameters,
    weight_bytes,
)
from compressor.pruning.target import ResolvedTarget, resolve_shape, resolve_target
from compressor.recipe import Recipe

SCHEMA = "compress-export/plan/1"
ASSUMED_UTILISATION = 0.4
_PRECISION_OF_FORMAT = {
    "huggingface": "bf16",
    "huggingface-fp8": "fp8",
    "onnx": "fp32",
    "onnx-fp16": "fp16",
    "onnx-int4": "int4",
    "tensorrt-llm": "bf16",
    "tensorrt-llm-fp16": "fp16",
    "tensorrt-llm-fp8": "fp8",
}
# AdamW in float32: weights, gradients and two moments of the student.
_TRAINING_BYTES_PER_PARAMETER = 16


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
    recipe: Recipe, teacher: Dims, *, gpu: str = "h100", num_gpus: int = 8, out_dir: str = ""
) -> Plan:
    """Resolve a recipe for a teacher of known dimensions.

    Args:
        recipe: The run.
        teacher: The teacher's dimensions.
        gpu: Key of `hardware.GPUS`, the stated hardware of the hours.
        num_gpus: How many of them.
        out_dir: Where the run will write.

    Raises:
        UsageError: no target, or one that cannot be resolved; an unknown GPU.
    """
    if gpu not in GPUS:
        raise UsageError(f"unknown GPU {gpu!r}", where="--gpu", expected=", ".join(GPUS))
    if recipe.prune.shape is not None:
        target = resolve_shape(teacher, recipe.prune.shape)
    elif recipe.target is not None:
        target = resolve_target(teacher, recipe.target)
    else:
        choices = "--target 4b, --target 60%, or prune.shape in a recipe"
        raise UsageError("a run needs a target size", hint=choices)
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
            "training": recipe.distill.data,
            "evaluation": recipe.evaluate.data or f"held-out part of {recipe.distill.data}",
        },
        "tokens": recipe.distill.tokens,
        "out_dir": out_dir,
        "disk_bytes": _disk(recipe, teacher, target.student),
        "memory_bytes": _memory(recipe, teacher, target.student),
        "hours": _hours(recipe, teacher, target.student, gpu=gpu, num_gpus=num_gpus),
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
    if recipe.distill.tokens:
        parts["distill"] = sixteen
        parts["training_checkpoints"] = 2 * 12 * num_parameters(student)
        parts["tokens"] = 4 * recipe.distill.tokens
    if recipe.sparsify.pattern:
        parts["sparsify"] = parts["recover"] = sixteen + sixteen // 16
    if recipe.quantize.fp8:
        parts["quantize"] = sixteen + weight_bytes(student, "fp8")
    for name in recipe.export_formats():
        if name != "huggingface":
            parts[f"exports/{name}"] = weight_bytes(student, _PRECISION_OF_FORMAT[name])
    if recipe.bench.enabled:
        for precision in recipe.bench.precisions:
            parts[f"benchmark teacher {precision}"] = weight_bytes(teacher, precision)
    return {**parts, "total": sum(parts.values())}


def _memory(recipe: Recipe, teacher: Dims, student: Dims) -> dict[str, int]:
    """Largest model memory per stage, activations left out."""
    teacher_bytes = weight_bytes(teacher, "bf16")
    memory = {"prune": teacher_bytes}
    if recipe.distill.tokens:
        memory["distill"] = teacher_bytes + _TRAINING_BYTES_PER_PARAMETER * num_parameters(student)
    if recipe.quantize.fp8:
        memory["quantize"] = weight_bytes(student, "bf16")
    memory["verify"] = 2 * weight_bytes(student, "fp32")
    return memory


def _hours(recipe: Recipe, teacher: Dims, student: Dims, *, gpu: str, num_gpus: int) -> dict[str, Any]:
    """Hours from FLOPs: teacher forward, student forward and backward (three forwards) per token."""
    rate = GPUS[gpu].bf16_flops_per_s * ASSUMED_UTILISATION * num_gpus
    context = recipe.distill.context_length // 2
    teacher_flops = flops_per_token(teacher, context)
    student_flops = flops_per_token(student, context)
    calibration_tokens = recipe.calibration.size * recipe.calibration.seq_len
    calibration_flops = calibration_tokens * teacher_flops
    if recipe.quantize.fp8:
        calibration_flops += calibration_tokens * student_flops
    distill_flops = recipe.distill.tokens * (teacher_flops + 3 * student_flops)
    return {
        "hardware": f"{num_gpus} x {GPUS[gpu].name}",
        "assumed_utilisation": ASSUMED_UTILISATION,
        "calibration": round(calibration_flops / rate / 3600, 4),
        "distill": round(distill_flops / rate / 3600, 4),
        "gpu_hours": round((calibration_flops + distill_flops) / rate / 3600 * num_gpus, 3),
        "not_included": "loading, evaluation, export, benchmark",
    }
