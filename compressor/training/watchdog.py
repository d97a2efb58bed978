"""Stops a training whose loss or gradient is no longer finite, and says where it began.

The check costs one norm per parameter and step. Only when it fails is the step run again, layer by
layer under observation; the optimizer has not moved, so the same thing happens again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from compressor.calibration.hooks import Observer, observed
from compressor.core.errors import VerificationError
from compressor.core.processes import sum_over_processes


def refuse_non_finite(
    module: nn.Module,
    batches: Sequence[dict[str, torch.Tensor]],
    losses: Sequence[torch.Tensor],
    *,
    step: int,
    position: int,
    autocast: Callable[[], Any],
) -> None:
    """Raise when any loss or gradient of a step is not finite.

    Args:
        module: Holds the gradients of the step.
        batches: The step's micro-batches of this process.
        losses: Theirs.
        step: From 1.
        position: Windows seen before it.
        autocast: Makes the context the forward pass runs in.

    Raises:
        VerificationError: with step, data position, and the first layer whose output or gradient is
            not finite.
    """
    if _all_finite(module, losses):
        return
    where, loss = _first_non_finite(module, batches, autocast)
    raise VerificationError(
        "the training loss or its gradient is not finite",
        where=f"optimizer step {step}, after window {position}, {where}",
        found=f"loss {loss}",
        hint="lower --learning-rate or raise --warmup-steps, in a new directory; the last checkpoint is kept",
    )


def _all_finite(module: nn.Module, losses: Sequence[torch.Tensor]) -> bool:
    """Whether every loss and gradient is, in every process."""
    grads = [_local(parameter.grad) for parameter in module.parameters() if parameter.grad is not None]
    norms = torch._foreach_norm(grads)  # noqa: SLF001 - torch's own optimizers call it so
    figures = torch.stack([*norms, *losses])
    bad = sum_over_processes((~torch.isfinite(figures)).sum().float())
    return not bool(bad)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _first_non_finite(
    module: nn.Module, batches: Sequence[dict[str, torch.Tensor]], autocast: Callable[[], Any]
) -> tuple[str, float]:
    """Where the first value that is not finite appears, and the loss of its micro-batch."""
    device = next(module.parameters()).device
    loss = float("nan")
    found: list[str] = []

    def observer(name: str) -> Observer:
        def observe(output: Any) -> None:
            if isinstance(output, torch.Tensor) and not torch.isfinite(output).all():
                found.append(f"output of {name}")

        return observe

    innermost = [(part, observer(name)) for name, part in module.named_modules() if not any(part.children())]
    for number, batch in enumerate(batches):
        module.zero_grad()
        with observed(outputs=innermost), autocast():
            outputs = module(**{name: values.to(device) for name, values in batch.items()})
        loss = float(outputs["loss"].detach())
        outputs["loss"].backward()
        found += [
            f"gradient of {name}"
            for name, parameter in module.named_parameters()
            if parameter.grad is not None and not torch.isfinite(_local(parameter.grad)).all()
        ]
        if found:
            return f"micro-batch {number}, {found[0]}", loss
    return "not seen here when the step was run again", loss
