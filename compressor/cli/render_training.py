"""The cost of a training as text: one line per training, one table over numbers of GPUs."""

from __future__ import annotations

from typing import Any

from compressor.cli.tables import duration, gib, table


def training_text(training: dict[str, Any]) -> str:
    """Every training of a plan, its cost on 1 to 1024 GPUs, and training from scratch beside it."""
    price = f"${training['gpu_hour_price_usd']:,.2f} per GPU-hour"
    price += " (an assumption: --gpu-hour-price)" if training["price_is_assumed"] else ""
    scratch = training["from_scratch"]
    rate = f"{training['assumed_utilisation']:.0%} of its bf16 rate (--mfu)"
    lines = [
        f"training on {training['gpu']}, assuming {rate} and {price}",
        *(_phase_text(phase) for phase in training["phases"]),
    ]
    if training["sampling_flops"]:
        lines.append(
            f"  generate: {training['sampling_flops']:.2e} FLOPs, assuming "
            f"{training['assumed_sampling_utilisation']:.0%} of the rate while sampling"
        )
    lines += [
        _phase_text(scratch) + f": {scratch['tokens_rule']}",
        table(_HEADER, [_row(*rows) for rows in _paired(training)]),
    ]
    lines += _uneven(training)
    ratio = scratch["ratio"]
    if None not in ratio.values():
        tokens, gpu_hours = (f"{ratio[name]:,.1f}x" for name in ("tokens", "gpu_hours"))
        lines.append(f"from scratch needs {tokens} the tokens and {gpu_hours} the GPU-hours")
    return "\n".join(lines)


_HEADER = (
    *("GPUs", "per GPU", "checkpointed", "fits", "s/step", "time", "GPU-hours", "cost"),
    *("from scratch", "GPU-hours", "cost"),
)


def _paired(training: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return list(zip(training["by_num_gpus"], training["from_scratch"]["by_num_gpus"], strict=True))


def _row(ours: dict[str, Any], scratch: dict[str, Any]) -> tuple[str, ...]:
    plain, checkpointed = (
        max(parts["total"] for parts in ours[name].values())
        for name in ("memory_bytes", "memory_with_checkpointing_bytes")
    )
    fits = "checkpointed" if ours["fits_with_checkpointing"] else "no"
    last_phase = list(ours["step_s"])[-1]
    return (
        f"{ours['num_gpus']:,}",
        gib(plain),
        gib(checkpointed),
        "yes" if ours["fits"] else fits,
        f"{ours['step_s'][last_phase]:,.2f}",
        *_cost(ours),
        *_cost(scratch),
    )


def _cost(row: dict[str, Any]) -> tuple[str, str, str]:
    return duration(row["hours"]), f"{row['gpu_hours']:,.1f}", f"${row['cost_usd']:,.0f}"


def _phase_text(phase: dict[str, Any]) -> str:
    return (
        f"  {phase['name']}: {phase['tokens']:,} tokens, {phase['steps']:,} steps of {phase['batch_size']:,} "
        f"windows of {phase['context_length']:,}, {phase['flops_per_token']:.2e} FLOPs per token"
    )


def _uneven(training: dict[str, Any]) -> list[str]:
    """What to change where a batch does not fall evenly on the GPUs, once per batch size."""
    lines = []
    sizes = {phase["batch_size"]: phase["name"] for phase in training["phases"]}
    for size, name in sizes.items():
        uneven = [
            f"{row['num_gpus']:,} GPUs ({row['batch'][name]['closest_that_divides']:,} would)"
            for row in training["by_num_gpus"]
            if not row["batch"][name]["divides"]
        ]
        if uneven:
            lines.append(
                f"a batch of {size:,} does not fall evenly on {', '.join(uneven)}: "
                "a step takes as long as its fullest GPU"
            )
    return lines
