"""What the trainings of a recipe cost: seconds per step, GPU-hours and money, beside training from scratch.

No torch. Estimates from matrix FLOPs at an assumed utilisation, which stands for communication,
kernels and waiting alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from compressor.core.errors import UsageError
from compressor.core.hardware import GPUS, Gpu
from compressor.models.dims import Dims, flops_per_token, num_parameters
from compressor.models.presets import preset_of_dims
from compressor.planning.schedule import (
    Phase,
    batch_and_steps,
    ceil_divide,
    memory_per_gpu,
    training_flops_per_token,
)
from compressor.recipe.recipe import Distill, Recipe

GPU_COUNTS = (1, 8, 64, 256, 1024)
ASSUMED_UTILISATION = 0.4
# Sampling reads all weights for every token: it is bound by memory, not by matrix FLOPs.
SAMPLING_UTILISATION = 0.05
# Left free for the CUDA context, communication buffers and fragmentation.
USABLE_MEMORY = 0.9
# Hoffmann et al. 2022, arXiv 2203.15556: the compute-optimal budget.
TOKENS_PER_PARAMETER = 20


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The stated hardware of an estimate.

    Attributes:
        gpu: Key of `hardware.GPUS`.
        num_gpus: How many of them.
        utilisation: Share of the datasheet's dense bf16 rate that training reaches.
        gpu_hour_price: US dollars; None for the GPU's assumed price.
    """

    gpu: str = "h100"
    num_gpus: int = 8
    utilisation: float = ASSUMED_UTILISATION
    gpu_hour_price: float | None = None

    def __post_init__(self) -> None:
        """Refuse shares and prices that are none.

        Raises:
            UsageError: naming the option.
        """
        if not 0 < self.utilisation <= 1:
            raise UsageError(
                "--mfu must be above 0 and at most 1",
                where="--mfu",
                expected="above 0, at most 1",
                found=self.utilisation,
            )
        if self.gpu_hour_price is not None and not 0 <= self.gpu_hour_price < math.inf:
            raise UsageError(
                "the price of a GPU-hour is no amount of money",
                where="--gpu-hour-price",
                expected="US dollars, 0 or more",
                found=self.gpu_hour_price,
            )

    @property
    def device(self) -> Gpu:
        """The GPU's figures.

        Raises:
            UsageError: for an unknown one.
        """
        if self.gpu not in GPUS:
            raise UsageError(f"unknown GPU {self.gpu!r}", where="--gpu", expected=", ".join(GPUS))
        return GPUS[self.gpu]

    @property
    def price(self) -> float:
        """US dollars per GPU-hour."""
        return self.device.assumed_hour_price if self.gpu_hour_price is None else self.gpu_hour_price


def step_seconds(phase: Phase, hardware: Hardware, num_gpus: int) -> float:
    """Seconds of one optimizer step: the GPU with the most windows decides."""
    tokens = windows_per_gpu(phase.batch_size, num_gpus) * phase.context_length
    rate = hardware.device.bf16_flops_per_s * hardware.utilisation
    return tokens * training_flops_per_token(phase) / rate


def windows_per_gpu(batch_size: int, num_gpus: int) -> int:
    """Windows of a step on the fullest GPU."""
    return ceil_divide(batch_size, num_gpus)


def sampling_flops(recipe: Recipe, teacher: Dims) -> int:
    """FLOPs of the text sampled from the teacher: one forward per sampled and per prompt token."""
    generate = recipe.distill.generate
    num_samples = ceil_divide(generate.tokens, generate.max_new_tokens)
    prompt_tokens = num_samples * generate.prompt_tokens if generate.prompts else 0
    context = (generate.prompt_tokens + generate.max_new_tokens) // 2
    return (generate.tokens + prompt_tokens) * flops_per_token(teacher, context)


def training_phases(recipe: Recipe, teacher: Dims, student: Dims) -> tuple[Phase, ...]:
    """The trainings a recipe asks for, in the order they run; none for a budget of 0."""
    distill = recipe.distill
    phases = []
    if distill.tokens and distill.correction.mode == "first":
        tokens = distill.correction.tokens or distill.tokens
        phases.append(_phase("correction", distill, tokens, student=teacher, teacher=None))
    if distill.tokens:
        asked = None if distill.teacher_logits else teacher
        alongside = asked is not None and distill.correction.mode == "alongside"
        phases.append(
            _phase(
                "distill", distill, distill.tokens, student=student, teacher=asked, trains_teacher=alongside
            )
        )
    own = recipe.sparsify.tokens
    recovery = distill.tokens if own is None else own
    if recipe.sparsify.pattern and recovery:
        phases.append(_phase("recover", distill, recovery, student=student, teacher=teacher))
    return tuple(phases)


def scratch_phase(recipe: Recipe, student: Dims, origin: Dims) -> tuple[Phase, str]:
    """Training the student from random weights instead, and where the number of tokens is from.

    Args:
        recipe: For context, batch and how the training is laid out.
        student: What is trained.
        origin: The published model at the start: its pre-training budget is taken where it is known.
    """
    preset = preset_of_dims(origin)
    if preset is not None and preset.pretraining_tokens is not None:
        tokens = preset.pretraining_tokens
        rule = f"the published pre-training budget of {preset.alias} ({preset.pretraining_source})"
    else:
        tokens = TOKENS_PER_PARAMETER * num_parameters(student)
        rule = f"{TOKENS_PER_PARAMETER} tokens per parameter (arXiv 2203.15556)"
    return _phase("scratch", recipe.distill, tokens, student=student, teacher=None), rule


def training_estimate(
    recipe: Recipe, teacher: Dims, student: Dims, hardware: Hardware, *, origin: Dims
) -> dict[str, Any] | None:
    """All of a recipe's trainings on 1 to 1024 GPUs, beside training from scratch; None without any."""
    phases = training_phases(recipe, teacher, student)
    if not phases:
        return None
    sampling = sampling_flops(recipe, teacher)
    counts = sorted({*GPU_COUNTS, hardware.num_gpus})
    rows = [_row(phases, hardware, count, sampling=sampling) for count in counts]
    scratch, rule = scratch_phase(recipe, student, origin)
    scratch_rows = [_row((scratch,), hardware, count, sampling=0) for count in counts]
    ours, theirs = (_row_of(found, hardware.num_gpus) for found in (rows, scratch_rows))
    own_tokens = sum(phase.tokens for phase in phases if phase.name != "correction")
    return {
        "gpu": hardware.device.name,
        "assumed_utilisation": hardware.utilisation,
        "assumed_sampling_utilisation": SAMPLING_UTILISATION,
        "gpu_hour_price_usd": hardware.price,
        "price_is_assumed": hardware.gpu_hour_price is None,
        "usable_memory_bytes": int(USABLE_MEMORY * hardware.device.memory_bytes),
        "activation_checkpointing": recipe.distill.activation_checkpointing,
        "phases": [_describe(phase) for phase in phases],
        "sampling_flops": sampling,
        "by_num_gpus": rows,
        "from_scratch": {
            "tokens_rule": rule,
            **_describe(scratch),
            "by_num_gpus": scratch_rows,
            "ratio": {
                "tokens": _ratio(scratch.tokens, own_tokens),
                "gpu_hours": _ratio(theirs["gpu_hours"], ours["gpu_hours"]),
            },
        },
    }


def _phase(
    name: str,
    config: Distill,
    tokens: int,
    *,
    student: Dims,
    teacher: Dims | None,
    trains_teacher: bool = False,
) -> Phase:
    batch_size, steps = batch_and_steps(config.model_copy(update={"tokens": tokens}))
    return Phase(
        name=name,
        student=student,
        teacher=teacher,
        trains_teacher=trains_teacher,
        steps=steps,
        batch_size=batch_size,
        context_length=config.context_length,
        micro_batch_size=min(config.micro_batch_size, batch_size),
        sharded=config.sharding != "ddp",
        recomputes=config.activation_checkpointing,
    )


def _row(phases: Iterable[Phase], hardware: Hardware, num_gpus: int, *, sampling: int) -> dict[str, Any]:
    """Memory, time and money on one number of GPUs."""
    phases = tuple(phases)
    plain, recomputed = (
        {phase.name: memory_per_gpu(phase, num_gpus, recomputes=recomputes) for phase in phases}
        for recomputes in (False, True)
    )
    usable = USABLE_MEMORY * hardware.device.memory_bytes
    seconds = {phase.name: step_seconds(phase, hardware, num_gpus) for phase in phases}
    hours = {phase.name: phase.steps * seconds[phase.name] / 3600 for phase in phases}
    if sampling:
        # One process samples, however many wait for it.
        hours["generate"] = sampling / (hardware.device.bf16_flops_per_s * SAMPLING_UTILISATION) / 3600
    total = sum(hours.values())
    return {
        "num_gpus": num_gpus,
        "memory_bytes": plain,
        "memory_with_checkpointing_bytes": recomputed,
        "fits": all(parts["total"] <= usable for parts in plain.values()),
        "fits_with_checkpointing": all(parts["total"] <= usable for parts in recomputed.values()),
        "batch": {phase.name: _share(phase.batch_size, num_gpus) for phase in phases},
        "step_s": {name: round(value, 4) for name, value in seconds.items()},
        "phase_hours": {name: round(value, 4) for name, value in hours.items()},
        "hours": round(total, 4),
        "gpu_hours": round(total * num_gpus, 3),
        "cost_usd": round(total * num_gpus * hardware.price, 2),
    }


def _share(batch_size: int, num_gpus: int) -> dict[str, Any]:
    """How a batch falls on the GPUs, and the closest one that falls evenly."""
    return {
        "windows_per_gpu": windows_per_gpu(batch_size, num_gpus),
        "divides": batch_size % num_gpus == 0,
        "closest_that_divides": max(1, round(batch_size / num_gpus)) * num_gpus,
    }


def _describe(phase: Phase) -> dict[str, Any]:
    return {
        "name": phase.name,
        "tokens": phase.tokens,
        "steps": phase.steps,
        "batch_size": phase.batch_size,
        "context_length": phase.context_length,
        "flops_per_token": training_flops_per_token(phase),
    }


def _row_of(rows: list[dict[str, Any]], num_gpus: int) -> dict[str, Any]:
    return next(row for row in rows if row["num_gpus"] == num_gpus)


def _ratio(larger: float, smaller: float) -> float | None:
    return round(larger / smaller, 2) if smaller else None
