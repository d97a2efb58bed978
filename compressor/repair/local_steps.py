"""Local gradient steps: attention or MLP of one decoder layer, trained by itself towards wanted outputs.

Least squares finds the best single matrix for the inputs it has; it cannot move queries and keys together, or
gate and up through their product. A few hundred steps on the outputs of attention and of the MLP, each by
itself and with dense targets, can (arXiv 2510.14444). Only matrices change, of sparse ones the kept weights.

The loss is the squared error, tokens weighted as for least squares. Adam in float32; the rate is a fraction
of each matrix's root mean square, and falls linearly to 0. Windows have the three uses of the walk: steps are
taken on those to fit, the best moment is found on those to choose, of the values that are stored, and it is
accepted only where the error falls on those to accept.

Legend: W windows, S tokens of a window, H channels that the part reads, O that it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from compressor.recipe.compression import REPAIR_STEP_TOKENS
from compressor.repair.choice import Use

# Step over root mean square of a matrix, at first.
_RATE = 2e-3
_BETAS = (0.9, 0.95)
# How often the error on the windows to choose is looked at.
_LOOKS = 8
_SEED = 0
_INPUT = "hidden_states"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Attention or MLP of a layer, as its layer calls it.

    Attributes:
        module: Reads what its norm gives, `[B, S, H]`.
        call: Further keyword arguments.
        by_keyword: Whether the layer gives its input by keyword.
    """

    module: nn.Module
    call: Mapping[str, Any] = field(default_factory=dict)
    by_keyword: bool = False

    def __call__(self, weights: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """Its outputs `[B, S, O]` in float32, with these weights in place of its own."""
        own = {name: tensor.float() for name, tensor in self.module.named_parameters() if name not in weights}
        call = {**self.call, _INPUT: inputs} if self.by_keyword else dict(self.call)
        positional = () if self.by_keyword else (inputs,)
        output = functional_call(self.module, {**own, **weights}, positional, call)
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What a part reads and should give, float32.

    Attributes:
        inputs: `[W, S, H]`.
        targets: `[W, S, O]`.
        weights: Of every token, `[W, S, 1]`: multiplies its error before squaring.
        uses: Which windows are for what.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    uses: Mapping[Use, list[int]]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix of a part that is trained.

    Attributes:
        weight: `[out, in]`, in the dtype that is stored.
        keep_mask: bool, which weights exist; None: all.
    """

    weight: torch.Tensor
    keep_mask: torch.Tensor | None = None

    def acting(self, weight: torch.Tensor) -> torch.Tensor:
        """What the part multiplies with when its weight is this one, in float32."""
        return weight.float() if self.keep_mask is None else weight.float() * self.keep_mask


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """What became of a part.

    Attributes:
        weights: Its new matrices in their own dtype, masked ones with exact zeros; the old ones where those
            were better.
        accepted: Whether they are new.
        steps: Taken up to the moment that did best on the windows to choose.
        error_ratio: Weighted squared error on the windows to accept over that before; None where that was 0.
    """

    weights: dict[str, torch.Tensor]
    accepted: bool
    steps: int
    error_ratio: float | None


def take_steps(part: Part, matrices: Mapping[str, Matrix], examples: Examples, steps: int) -> Stepped:
    """Train matrices of a part, by their parameters' names in it; nothing is changed in place."""
    before = {name: matrix.weight for name, matrix in matrices.items()}
    best, best_steps = before, 0
    least = error_of(part, matrices, before, examples, "choose")
    for taken, found in _descend(part, matrices, examples, steps):
        error = error_of(part, matrices, found, examples, "choose")
        if error < least:
            best, best_steps, least = found, taken, error
    error_before = error_of(part, matrices, before, examples, "accept")
    ratio = error_of(part, matrices, best, examples, "accept") / error_before if error_before else None
    accepted = best_steps > 0 and ratio is not None and ratio < 1
    weights = best if accepted else before
    return Stepped(weights=weights, accepted=accepted, steps=best_steps, error_ratio=ratio)


@torch.no_grad()
def error_of(
    part: Part,
    matrices: Mapping[str, Matrix],
    weights: Mapping[str, torch.Tensor],
    examples: Examples,
    use: Use,
) -> float:
    """Weighted squared error over all windows of a use, one at a time."""
    acting = {name: matrices[name].acting(weight) for name, weight in weights.items()}
    errors = (_errors(part, acting, examples, [window]) for window in examples.uses[use])
    return sum(error.square().sum(dtype=torch.float64).item() for error in errors)


def part_of(module: nn.Module, run: Callable[[], object]) -> Part:
    """A part with what its layer calls it with, found while `run` runs the layer once.

    What comes after the part is not run.
    """
    found: list[Part] = []

    def record(_module: nn.Module, _arguments: tuple[Any, ...], call: dict[str, Any]) -> None:
        rest = {name: _in_float32(value) for name, value in call.items() if name != _INPUT}
        found.append(Part(module=module, call=rest, by_keyword=_INPUT in call))
        raise _FoundError

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        with suppress(_FoundError):
            run()
    finally:
        handle.remove()
    return found[0]


class _FoundError(Exception):
    """The part has been called; the rest of its layer need not run."""


def _descend(
    part: Part, matrices: Mapping[str, Matrix], examples: Examples, steps: int
) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """Weights as they would be stored, a few times on the way, and after how many steps."""
    trained = {
        name: matrix.weight.detach().float().clone().requires_grad_() for name, matrix in matrices.items()
    }
    rates = [_RATE * tensor.detach().square().mean().sqrt().item() for tensor in trained.values()]
    groups = [{"params": [t], "lr": rate} for t, rate in zip(trained.values(), rates, strict=True)]
    optimizer = torch.optim.Adam(groups, betas=_BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    looks = {-(-steps * look // _LOOKS) for look in range(1, _LOOKS + 1)}
    batches = _batches(examples.uses["fit"], examples.inputs.shape[1], steps)
    for taken, batch in enumerate(batches, start=1):
        with torch.enable_grad():
            acting = {name: matrices[name].acting(tensor) for name, tensor in trained.items()}
            loss = _errors(part, acting, examples, batch).square().mean()
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        schedule.step()
        if taken in looks:
            yield taken, {name: _stored(matrices[name], tensor) for name, tensor in trained.items()}


def _stored(matrix: Matrix, trained: torch.Tensor) -> torch.Tensor:
    weight = trained.detach().to(matrix.weight.dtype)
    return weight.clone() if matrix.keep_mask is None else weight.masked_fill(~matrix.keep_mask, 0)


def _errors(
    part: Part, acting: Mapping[str, torch.Tensor], examples: Examples, windows: list[int]
) -> torch.Tensor:
    device = next(iter(acting.values())).device
    inputs, targets, weights = (
        tensor[windows].to(device) for tensor in (examples.inputs, examples.targets, examples.weights)
    )
    return (part(acting, inputs) - targets) * weights


def _batches(windows: list[int], seq_len: int, steps: int) -> list[list[int]]:
    """Windows of every step: all of them in a random order, again and again."""
    size = min(len(windows), max(1, REPAIR_STEP_TOKENS // seq_len))
    generator = torch.Generator().manual_seed(_SEED)
    order: list[int] = []
    while len(order) < steps * size:
        order += [windows[index] for index in torch.randperm(len(windows), generator=generator).tolist()]
    return [order[step * size : (step + 1) * size] for step in range(steps)]


def _in_float32(value: Any) -> Any:
    """What a part is called with, in the precision that it is trained in."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_in_float32(entry) for entry in value)
    return value
