"""What the trainings of a recipe cost: seconds per step, GPU-hours and money, beside training from scratch.

No torch. Estimates from matrix FLOPs at an assumed utilisation, which stands for communication,
kernels and waiting alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compressor.choices.importance import IMPORTANCE_METHODS
from compressor.core.errors import UsageError, nearest
from compressor.core.hardware import GPUS, Gpu
from compressor.core.records import Record
from compressor.models.dims import Dims, flops_per_token, num_parameters
from compressor.models.presets import preset_of_dims
from compressor.planning.cuts import PlannedCut
from compressor.planning.mask_schedule import mask_phase
from compressor.planning.schedule import (
    Phase,
    ceil_divide,
    correction_schedule,
    memory_per_gpu,
    training_schedule,
)
from compressor.recipe.compression import REPAIR_STEP_TOKENS
from compressor.recipe.recipe import Distill, Prune, Recipe

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
        """Refuse shares and prices that are out of range, naming the option."""
        if not 0 < self.utilisation <= 1:
            raise UsageError(
                "--mfu must be above 0 and at most 1",
                where="--mfu",
                found=self.utilisation,
                hint="use a value such as 0.4",
            )
        if self.gpu_hour_price is not None and not 0 <= self.gpu_hour_price < math.inf:
            raise UsageError(
                "the price of a GPU-hour must be 0 or more US dollars",
                where="--gpu-hour-price",
                found=self.gpu_hour_price,
                hint="leave it out for an assumed price",
            )

    @property
    def device(self) -> Gpu:
        """The GPU's figures; an unknown one is refused."""
        if self.gpu not in GPUS:
            raise UsageError(
                f"unknown GPU {self.gpu!r}",
                where="--gpu",
                expected=", ".join(GPUS),
                hint=nearest(self.gpu, GPUS) or "use the expected one that is closest to yours",
            )
        return GPUS[self.gpu]

    @property
    def price(self) -> float:
        """US dollars per GPU-hour."""
        return self.device.assumed_hour_price if self.gpu_hour_price is None else self.gpu_hour_price


def scoring_passes(prune: Prune) -> int:
    """Forward passes over the calibration text that scores cost; a backward pass costs two.

    None where they were saved, or need no text; finding a rotation is one more.
    """
    method = IMPORTANCE_METHODS[prune.importance]
    passes = 0 if prune.scores or not method.needs_text else 3 if method.needs_gradients else 1
    return passes + prune.rotates


def repair_flops(recipe: Recipe, original: Dims, student: Dims) -> int:
    """FLOPs of a repair: the original's forward pass and three of the student's, then gradient steps.

    A step is a forward and a backward pass of every attention and MLP.
    """
    if not recipe.repair.enabled:
        return 0
    text = recipe.repair_calibration()
    per_token = [flops_per_token(dims, text.seq_len // 2) for dims in (original, student)]
    stepped = recipe.repair.steps * min(text.size, max(1, REPAIR_STEP_TOKENS // text.seq_len)) * text.seq_len
    return text.size * text.seq_len * (per_token[0] + 3 * per_token[1]) + 3 * stepped * per_token[1]


def fp8_repair_flops(recipe: Recipe, student: Dims) -> int:
    """FLOPs of the repair of a quantised model: its 16-bit original's forward pass and five of its own.

    Beside the passes of any repair, one measures the inputs of the layers that read a norm, one the others'.
    """
    text = recipe.repair_calibration()
    return text.size * text.seq_len * 6 * flops_per_token(student, text.seq_len // 2)


class PlannedPhase(Record):
    """One training."""

    name: str
    tokens: int
    steps: int
    batch_size: int
    context_length: int
    flops_per_token: int


class GpuRow(Record):
    """All trainings on one number of GPUs; dictionaries are by the stage that trains."""

    num_gpus: int
    memory_bytes: dict[str, dict[str, int]]
    memory_with_checkpointing_bytes: dict[str, dict[str, int]]
    windows_per_gpu: dict[str, int]
    fits: bool
    fits_with_checkpointing: bool
    step_s: dict[str, float]
    phase_hours: dict[str, float]
    hours: float
    gpu_hours: float
    cost_usd: float

    @property
    def largest_memory_bytes(self) -> tuple[int, int]:
        """Of the training that needs most on one GPU: as it is, and with recomputed activations."""
        plain, checkpointed = (
            max(parts["total"] for parts in memory.values())
            for memory in (self.memory_bytes, self.memory_with_checkpointing_bytes)
        )
        return plain, checkpointed


class FromScratch(Record):
    """Training the student from random weights, for comparison; ratios are of it over the run's own."""

    tokens_rule: str
    phase: PlannedPhase
    by_num_gpus: tuple[GpuRow, ...]
    tokens_ratio: float | None
    gpu_hours_ratio: float | None


class TrainingEstimate(Record):
    """What a recipe's trainings cost on 1 to 1024 GPUs."""

    gpu: str
    assumed_utilisation: float
    assumed_sampling_utilisation: float
    gpu_hour_price_usd: float
    price_is_assumed: bool
    usable_memory_bytes: int
    activation_checkpointing: bool
    phases: tuple[PlannedPhase, ...]
    sampling_flops: int
    by_num_gpus: tuple[GpuRow, ...]
    from_scratch: FromScratch

    def on(self, num_gpus: int) -> GpuRow:
        """The row of one number of GPUs, which must be there."""
        return _row_of(self.by_num_gpus, num_gpus)


def step_seconds(phase: Phase, hardware: Hardware, num_gpus: int) -> float:
    """Seconds of one optimizer step: the GPU with the most windows decides."""
    tokens = _windows_per_gpu(phase, num_gpus) * phase.context_length
    rate = hardware.device.bf16_flops_per_s * hardware.utilisation
    return tokens * phase.flops_per_token / rate


def _windows_per_gpu(phase: Phase, num_gpus: int) -> int:
    return ceil_divide(phase.schedule.batch_size, 1 if phase.single_process else num_gpus)


def sampling_flops(recipe: Recipe, teacher: Dims) -> int:
    """FLOPs of the text sampled from the teacher: one forward per sampled and per prompt token."""
    generate = recipe.distill.generate
    num_samples = ceil_divide(generate.tokens, generate.max_new_tokens)
    prompt_tokens = num_samples * generate.prompt_tokens if generate.prompts else 0
    context = (generate.prompt_tokens + generate.max_new_tokens) // 2
    return (generate.tokens + prompt_tokens) * flops_per_token(teacher, context)


def training_phases(
    recipe: Recipe, teacher: Dims, student: Dims, processes: int, *, cuts: Sequence[PlannedCut] = ()
) -> tuple[Phase, ...]:
    """The trainings a recipe asks for, in the order they run, for so many processes, one per GPU.

    After each of the `cuts`, the last of which leaves the student, a part of the distillation's tokens is
    spent.

    Raises:
        UsageError: for a budget that does not fill one window.
    """
    distill = recipe.distill
    phases = [mask_phase(distill, recipe.masks, teacher)] if recipe.mask_tokens() else []
    if distill.tokens and distill.correction.mode == "first":
        phases.append(_phase("correct", distill, processes, student=teacher, teacher=None))
    if distill.tokens:
        asked = None if distill.teacher_logits else teacher
        alongside = asked is not None and distill.correction.mode == "alongside"
        own = recipe.interleave.share(distill) if cuts else distill
        phases += [
            _phase(f"{cut.name}-distill", own, processes, student=cut.shape, teacher=asked)
            for cut in cuts[:-1]
        ]
        phases.append(
            _phase("distill", own, processes, student=student, teacher=asked, trains_teacher=alongside)
        )
    if tokens := recipe.recovery_tokens():
        recovery = distill.model_copy(update={"tokens": tokens})
        phases.append(_phase("recover", recovery, processes, student=student, teacher=teacher))
    return tuple(phases)


def scratch_budget(student: Dims, origin: Dims) -> tuple[int, str]:
    """The tokens that training the student from random weights takes, and where their number is from.

    The pre-training budget of `origin`, the published model at the start, is taken where it is known.
    """
    preset = preset_of_dims(origin)
    if preset is not None and preset.pretraining_tokens is not None:
        source = f"the published pre-training budget of {preset.alias} ({preset.pretraining_source})"
        return preset.pretraining_tokens, source
    rule = f"{TOKENS_PER_PARAMETER} tokens per parameter (arXiv 2203.15556)"
    return TOKENS_PER_PARAMETER * num_parameters(student), rule


def training_estimate(
    recipe: Recipe,
    teacher: Dims,
    student: Dims,
    hardware: Hardware,
    *,
    origin: Dims,
    cuts: Sequence[PlannedCut] = (),
) -> TrainingEstimate | None:
    """All of a recipe's trainings on 1 to 1024 GPUs, beside training from scratch; None without any.

    Raises:
        UsageError: for a budget that does not fill one window.
    """
    planned = training_phases(recipe, teacher, student, hardware.num_gpus, cuts=cuts)
    if not planned:
        return None
    tokens, rule = scratch_budget(student, origin)
    budget = recipe.distill.model_copy(update={"tokens": max(tokens, recipe.distill.context_length)})
    sampling = sampling_flops(recipe, teacher)
    rows, scratch_rows = [], []
    for count in sorted({*GPU_COUNTS, hardware.num_gpus}):
        phases = training_phases(recipe, teacher, student, count, cuts=cuts)
        rows.append(_row(phases, hardware, count, sampling=sampling))
        scratch = _phase("scratch", budget, count, student=student, teacher=None)
        scratch_rows.append(_row((scratch,), hardware, count, sampling=0))
    ours, theirs = (_row_of(found, hardware.num_gpus) for found in (rows, scratch_rows))
    own_tokens = sum(phase.tokens for phase in planned if phase.name != "correct")
    return TrainingEstimate(
        gpu=hardware.device.name,
        assumed_utilisation=hardware.utilisation,
        assumed_sampling_utilisation=SAMPLING_UTILISATION,
        gpu_hour_price_usd=hardware.price,
        price_is_assumed=hardware.gpu_hour_price is None,
        usable_memory_bytes=int(USABLE_MEMORY * hardware.device.memory_bytes),
        activation_checkpointing=recipe.distill.activation_checkpointing,
        phases=tuple(map(_describe, planned)),
        sampling_flops=sampling,
        by_num_gpus=tuple(rows),
        from_scratch=FromScratch(
            tokens_rule=rule,
            phase=_describe(scratch),
            by_num_gpus=tuple(scratch_rows),
            tokens_ratio=_ratio(scratch.tokens, own_tokens),
            gpu_hours_ratio=_ratio(theirs.gpu_hours, ours.gpu_hours),
        ),
    )


def _phase(
    name: str,
    config: Distill,
    processes: int,
    *,
    student: Dims,
    teacher: Dims | None,
    trains_teacher: bool = False,
) -> Phase:
    make = correction_schedule if name == "correct" else training_schedule
    return Phase(
        name=name,
        student=student,
        teacher=teacher,
        trains_teacher=trains_teacher,
        schedule=make(config, processes),
        context_length=config.context_length,
        sharded=config.sharding != "ddp",
        recomputes=config.activation_checkpointing,
    )


def _row(phases: tuple[Phase, ...], hardware: Hardware, num_gpus: int, *, sampling: int) -> GpuRow:
    """Memory, time and money on one number of GPUs."""
    plain, recomputed = (
        {phase.name: memory_per_gpu(phase, num_gpus, recomputes=recomputes) for phase in phases}
        for recomputes in (False, True)
    )
    usable = USABLE_MEMORY * hardware.device.memory_bytes
    seconds = {phase.name: step_seconds(phase, hardware, num_gpus) for phase in phases}
    hours = {phase.name: phase.schedule.steps * seconds[phase.name] / 3600 for phase in phases}
    if sampling:
        # One process samples, however many wait for it.
        hours["generate"] = sampling / (hardware.device.bf16_flops_per_s * SAMPLING_UTILISATION) / 3600
    total = sum(hours.values())
    return GpuRow(
        num_gpus=num_gpus,
        memory_bytes=plain,
        memory_with_checkpointing_bytes=recomputed,
        windows_per_gpu={phase.name: _windows_per_gpu(phase, num_gpus) for phase in phases},
        fits=all(parts["total"] <= usable for parts in plain.values()),
        fits_with_checkpointing=all(parts["total"] <= usable for parts in recomputed.values()),
        step_s={name: round(value, 4) for name, value in seconds.items()},
        phase_hours={name: round(value, 4) for name, value in hours.items()},
        hours=round(total, 4),
        gpu_hours=round(total * num_gpus, 3),
        cost_usd=round(total * num_gpus * hardware.price, 2),
    )


def _describe(phase: Phase) -> PlannedPhase:
    return PlannedPhase(
        name=phase.name,
        tokens=phase.tokens,
        steps=phase.schedule.steps,
        batch_size=phase.schedule.batch_size,
        context_length=phase.context_length,
        flops_per_token=phase.flops_per_token,
    )


def _row_of(rows: Iterable[GpuRow], num_gpus: int) -> GpuRow:
    return next(row for row in rows if row.num_gpus == num_gpus)


def _ratio(larger: float, smaller: float) -> float | None:
    return round(larger / smaller, 2) if smaller else None
