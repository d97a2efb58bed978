"""Masks on a plain transformers model: applied while it runs, and folded into its weights at the end.

| mask | multiplies | folded into |
|---|---|---|
| hidden | embeddings, sublayers' and norms' outputs | embedding, rows of o_proj and down_proj, norms |
| heads | each query head's output, before o_proj | columns of o_proj |
| intermediate | the activation before down_proj | columns of down_proj |
| layers | both sublayers' outputs | rows of o_proj and down_proj |

A norm takes its statistics over the remaining hidden channels only: with n of H channels left, the others
being 0 in the residual stream, norm(sqrt(H / n) x) sqrt(n / H) is the norm over n channels, its epsilon
included.
The final norm of a tied model is not folded: its mask goes with the embedding, which is the head too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from compressor.models.adapter import ModelAdapter
from compressor.models.axes import PRUNABLE_AXES, Weight
from compressor.models.dims import Dims
from compressor.pruning.plan import PrunePlan

HIDDEN, LAYERS = "hidden", "layers"


@dataclass(frozen=True, kw_only=True)
class MaskValues:
    """The masks of one forward pass; what is not named is not masked.

    Attributes:
        units: By axis: `[num_units]`, or `[num_hidden_layers, num_units]` where every layer has its own.
        layers: `[num_hidden_layers]`.
    """

    units: Mapping[str, torch.Tensor] = field(default_factory=dict)
    layers: torch.Tensor | None = None

    def named(self) -> dict[str, torch.Tensor]:
        """All of them, those of the layers under `layers`."""
        return {**self.units, **({} if self.layers is None else {LAYERS: self.layers})}

    def inputs_of(self, weight: Weight, layer: int, dims: Dims) -> torch.Tensor | None:
        """What multiplies the columns of a layer's weight, `[columns]`; None where nothing does."""
        axis = weight.columns
        if axis is None or axis == HIDDEN or axis not in self.units:
            return None
        return self.units[axis][layer].repeat_interleave(dims.width(axis))

    def outputs_of(self, weight: Weight, layer: int) -> torch.Tensor | None:
        """What multiplies the rows of a layer's weight, `[rows]` or one number; None where nothing does."""
        if weight.columns is None or HIDDEN not in weight.rows.values():
            return None
        hidden = self.units.get(HIDDEN)
        if self.layers is None:
            return hidden
        return self.layers[layer] if hidden is None else hidden * self.layers[layer]


def kept_mask(plan: PrunePlan) -> MaskValues:
    """1 for every unit and layer that a plan keeps, 0 for the others."""
    dims, units = plan.source, {}
    for name, axis in PRUNABLE_AXES.items():
        rows = torch.zeros(dims.num_hidden_layers if axis.is_per_layer else 1, dims.units(name))
        for row, kept in zip(plan.layers if axis.is_per_layer else (0,), plan.kept[name], strict=True):
            rows[row, list(kept)] = 1
        units[name] = rows if axis.is_per_layer else rows[0]
    layers = torch.zeros(dims.num_hidden_layers)
    layers[list(plan.layers)] = 1
    return MaskValues(units=units, layers=layers)


Current = Callable[[], MaskValues]
_Find = Callable[[MaskValues], torch.Tensor | None]
_Hooks = tuple[Callable[..., Any], Callable[..., Any]]


@contextmanager
def masked(model: Any, current: Current) -> Iterator[None]:
    """Mask a model for as long as the context lasts, by the values that `current` gives at that moment."""
    adapter = ModelAdapter(model)
    dims, family = adapter.dims, adapter.family
    assert not family.norm_has_bias, "layer norms are not masked"
    with ExitStack() as stack:

        def add(module: nn.Module, hooks: _Hooks) -> None:
            stack.callback(module.register_forward_pre_hook(hooks[0]).remove)
            stack.callback(module.register_forward_hook(hooks[1]).remove)

        add(model.get_submodule(family.embedding), _scaling(current, _nothing, _hidden))
        add(model.get_submodule(family.final_norm), _over_remaining(current))
        for index, layer in enumerate(adapter.layers):
            for weight in family.layer:
                module = layer.part(weight.module)
                if weight.columns is not None:
                    inputs = partial(_inputs, weight=weight, layer=index, dims=dims)
                    outputs = partial(_outputs, weight=weight, layer=index)
                    add(module, _scaling(current, inputs, outputs))
                elif HIDDEN in weight.rows.values():
                    add(module, _over_remaining(current))
        yield


def _nothing(_values: MaskValues) -> None:
    return None


def _hidden(values: MaskValues) -> torch.Tensor | None:
    return values.units.get(HIDDEN)


def _inputs(values: MaskValues, *, weight: Weight, layer: int, dims: Dims) -> torch.Tensor | None:
    return values.inputs_of(weight, layer, dims)


def _outputs(values: MaskValues, *, weight: Weight, layer: int) -> torch.Tensor | None:
    return values.outputs_of(weight, layer)


def _scaling(current: Current, inputs: _Find, outputs: _Find) -> _Hooks:
    """Multiply a module's input and its output by the masks that are found at that moment."""

    def before(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        mask = inputs(current())
        return None if mask is None else (_times(arguments[0], mask), *arguments[1:])

    def after(_module: nn.Module, _arguments: Any, output: torch.Tensor) -> torch.Tensor | None:
        mask = outputs(current())
        return None if mask is None else _times(output, mask)

    return before, after


def _over_remaining(current: Current) -> _Hooks:
    """Make a norm one over the remaining hidden channels, and mask its output."""

    def before(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        hidden = _hidden(current())
        return None if hidden is None else (arguments[0] / _share(hidden).sqrt(), *arguments[1:])

    def after(_module: nn.Module, _arguments: Any, output: torch.Tensor) -> torch.Tensor | None:
        hidden = _hidden(current())
        return None if hidden is None else _times(output, hidden * _share(hidden).sqrt())

    return before, after


def _share(hidden: torch.Tensor) -> torch.Tensor:
    """Which part of the channels is left; of none, one channel's, so that nothing is divided by 0."""
    return hidden.count_nonzero().clamp_min(1) / hidden.numel()


def _times(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return x * mask.to(x)


@torch.no_grad()
def fold_(model: Any, values: MaskValues) -> None:
    """Multiply masks into a model's weights in place: unmasked, norms apart, it computes the same."""
    adapter = ModelAdapter(model)
    dims, family, hidden = adapter.dims, adapter.family, _hidden(values)
    for index, layer in enumerate(adapter.layers):
        for weight in family.layer:
            tensor: torch.Tensor = layer.part(weight.module).get_parameter(weight.kind)
            if weight.columns is None:
                if hidden is not None and HIDDEN in weight.rows.values():
                    tensor.mul_(hidden.to(tensor))
                continue
            rows, columns = values.outputs_of(weight, index), values.inputs_of(weight, index, dims)
            if rows is not None:
                tensor.mul_(rows.to(tensor).view(-1, 1))
            if columns is not None:
                tensor.mul_(columns.to(tensor))
    if hidden is not None:
        model.get_parameter(f"{family.embedding}.weight").mul_(hidden.to(model.dtype))
        if not dims.tie_word_embeddings:
            model.get_parameter(f"{family.final_norm}.weight").mul_(hidden.to(model.dtype))
