"""The cost of a training as text: one line per training, one table over numbers of GPUs."""

from __future__ import annotations

from compressor.cli.tables import duration, gib, table
from compressor.planning.cost import GpuRow, PlannedPhase, TrainingEstimate


def training_text(training: TrainingEstimate) -> str:
    """Every training of a plan, its cost on 1 to 1024 GPUs, and training from scratch beside it."""
    price = f"${training.gpu_hour_price_usd:,.2f} per GPU-hour"
    price += " (an assumption: --gpu-hour-price)" if training.price_is_assumed else ""
    scratch = training.from_scratch
    rate = f"{training.assumed_utilisation:.0%} of its bf16 rate (--mfu)"
    lines = [
        f"training on {training.gpu}, assuming {rate} and {price}",
        *(_phase_text(phase) for phase in training.phases),
    ]
    if training.sampling_flops:
        lines.append(
            f"  generate: {training.sampling_flops:.2e} FLOPs, assuming "
            f"{training.assumed_sampling_utilisation:.0%} of the rate while sampling"
        )
    pairs = zip(training.by_num_gpus, scratch.by_num_gpus, strict=True)
    lines += [
        _phase_text(scratch.phase) + f": {scratch.tokens_rule}",
        table(_HEADER, [_row(ours, theirs) for ours, theirs in pairs]),
    ]
    lines += _uneven(training)
    if scratch.tokens_ratio is not None and scratch.gpu_hours_ratio is not None:
        lines.append(
            f"from scratch needs {scratch.tokens_ratio:,.1f}x the tokens and "
            f"{scratch.gpu_hours_ratio:,.1f}x the GPU-hours"
        )
    return "\n".join(lines)


_HEADER = (
    *("GPUs", "per GPU", "checkpointed", "fits", "s/step", "time", "GPU-hours", "cost"),
    *("from scratch", "GPU-hours", "cost"),
)


def _row(ours: GpuRow, scratch: GpuRow) -> tuple[str, ...]:
    plain, checkpointed = ours.largest_memory_bytes
    fits = "checkpointed" if ours.fits_with_checkpointing else "no"
    last_phase = list(ours.step_s)[-1]
    return (
        f"{ours.num_gpus:,}",
        gib(plain),
        gib(checkpointed),
        "yes" if ours.fits else fits,
        f"{ours.step_s[last_phase]:,.2f}",
        *_cost(ours),
        *_cost(scratch),
    )


def _cost(row: GpuRow) -> tuple[str, str, str]:
    return duration(row.hours), f"{row.gpu_hours:,.1f}", f"${row.cost_usd:,.0f}"


def _phase_text(phase: PlannedPhase) -> str:
    return (
        f"  {phase.name}: {phase.tokens:,} tokens, {phase.steps:,} steps of {phase.batch_size:,} "
        f"sequences of {phase.context_length:,}, {phase.flops_per_token:.2e} FLOPs per token"
    )


def _uneven(training: TrainingEstimate) -> list[str]:
    """What to change where a batch does not fall evenly on the GPUs, once per batch size."""
    lines = []
    for size in dict.fromkeys(phase.batch_size for phase in training.phases):
        uneven = [
            f"{row.num_gpus:,} GPUs ({max(1, round(size / row.num_gpus)) * row.num_gpus:,} would)"
            for row in training.by_num_gpus
            if size % row.num_gpus
        ]
        if uneven:
            lines.append(
                f"a batch of {size:,} does not fall evenly on {', '.join(uneven)}: "
                "a step takes as long as its fullest GPU"
            )
    return lines
