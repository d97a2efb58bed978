"""The walk beside a model that computes in FP8: inputs, weights and cache rounded as kernels round them.

The compressed model's stream is that of its FP8 checkpoint. A linear layer reads inputs that were rounded
with the scale of their maximum, so least squares finds the weight for these inputs, and it is rounded with
what is left of the error in view (`compressor.repair.rounding`). Whether it is better is judged rounded.

Layers that share an input share the scale of their new weights, that of the largest weight among them, which
stays as it is: runtimes that fuse these layers then compute with the very same numbers. Maxima of inputs,
keys and values are taken again of what comes out of repaired layers, and only grow: what calibration saw
stays in range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from compressor.core.errors import VerificationError
from compressor.models.adapter import DecoderLayer
from compressor.models.axes import Weight
from compressor.quantization.amax import recorded
from compressor.quantization.e4m3 import scale_of, simulate
from compressor.repair.choice import Repaired, Use
from compressor.repair.least_squares import Sums
from compressor.repair.rounding import Rounded, solved_on_grid
from compressor.repair.sublayer import Sublayer
from compressor.repair.walk import Walk

_CACHE = "past_key_values"


@dataclass(kw_only=True)
class QuantisedWalk(Walk):
    """A walk whose compressed model computes in FP8.

    Attributes:
        amax: Every maximum by its name in `amax.safetensors`, replaced where it changes.
        rounds_cache: Whether keys and values are stored in FP8.
        stored_dtype: Of the weights that the FP8 ones are rounded from.
    """

    amax: dict[str, torch.Tensor] = field(default_factory=dict)
    rounds_cache: bool = False
    stored_dtype: torch.dtype = torch.float32
    _largest: dict[str, torch.Tensor] = field(default_factory=dict, init=False)

    @contextmanager
    def _compressed_layer(self, index: int) -> Iterator[DecoderLayer]:
        with super()._compressed_layer(index) as layer, ExitStack() as stack:
            for module, linear in layer.linear_layers().items():
                stack.callback(self._round_inputs_of_(self._full(index, module), linear).remove)
            yield layer

    def _round_inputs_of_(self, name: str, linear: nn.Linear) -> RemovableHandle:
        def round_(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            self._watch(f"{name}.input_amax", args[0])
            return (self._rounded(f"{name}.input_amax", args[0]), *args[1:])

        return linear.register_forward_pre_hook(round_)

    def _read(self, sublayer: Sublayer, index: int, states: torch.Tensor) -> torch.Tensor:
        name = self._full(index, sublayer.readers[0].module)
        return self._rounded(f"{name}.input_amax", super()._read(sublayer, index, states))

    def _repair_readers(
        self, sublayer: Sublayer, layer: DecoderLayer, index: int, own: int
    ) -> dict[str, torch.Tensor]:
        self._measure(sublayer, index, sublayer.readers[0])
        first, *others = (f"{self._full(index, weight.module)}.input_amax" for weight in sublayer.readers)
        for name in others:
            self._raise(name, recorded(self.amax, first))
        return super()._repair_readers(sublayer, layer, index, own)

    def _repair_writer(self, sublayer: Sublayer, layer: DecoderLayer, index: int) -> dict[str, torch.Tensor]:
        names = [f"{self._full(index, sublayer.module)}.{kind}_amax" for kind in "kv"]
        try:
            if sublayer.is_attention:
                self.compressed.also = {_CACHE: _PassingCache(names, self._watch)}
            self._measure(sublayer, index, sublayer.writer)
            if sublayer.is_attention and self.rounds_cache:
                self.compressed.also = {_CACHE: _PassingCache(names, self._rounded)}
                self._measure(sublayer, index, sublayer.writer)
            return super()._repair_writer(sublayer, layer, index)
        finally:
            self.compressed.also = {}

    def _solved_(self, name: str, linear: nn.Linear, sums: dict[Use, Sums]) -> tuple[torch.Tensor, Repaired]:
        own = f"{name}_amax"
        shared = torch.stack([recorded(self.amax, f"{other}_amax") for other in self._sharing(name)]).max()
        device = linear.weight.device
        now = Rounded(weight=linear.weight.data, amax=recorded(self.amax, own).to(device))
        made, found = solved_on_grid(
            now, sums, self._mask(name, linear), amax=shared.to(device), dtype=self.stored_dtype
        )
        if found.accepted:
            self.amax[own] = shared
        linear.weight.data = (made if found.accepted else now).acting.to(linear.weight.dtype)
        return made.weight, found

    def _sharing(self, name: str) -> list[str]:
        """Full names of the weights whose layers read what this one's reads, itself among them."""
        for modules in self.plan.source.family.sharing_input:
            for module in modules:
                if name.endswith(f".{module}.weight"):
                    prefix = name.removesuffix(f"{module}.weight")
                    return [f"{prefix}{other}.weight" for other in modules]
        raise AssertionError(f"{name} is the weight of no linear layer")

    def _measure(self, sublayer: Sublayer, index: int, weight: Weight) -> None:
        """Raise every maximum on the way into a linear layer to what its model reaches now."""
        self._largest.clear()
        for ours in self.compressed.states:
            sublayer.seen(self.compressed, index, ours, {weight.module: "input"})
        for name, value in self._largest.items():
            self._raise(name, value)

    def _watch(self, name: str, values: torch.Tensor) -> torch.Tensor:
        largest = values.abs().max().float().cpu()
        self._largest[name] = torch.maximum(self._largest.get(name, largest), largest)
        return values

    def _rounded(self, name: str, values: torch.Tensor) -> torch.Tensor:
        return simulate(values, scale_of(recorded(self.amax, name)).to(values.device))

    def _raise(self, name: str, value: torch.Tensor) -> None:
        if not value.isfinite():
            raise VerificationError("an activation is not finite", where=name, found="NaN or inf")
        self.amax[name] = torch.maximum(recorded(self.amax, name), value)

    def _full(self, index: int, module: str) -> str:
        return f"{self.compressed.prefix(index)}{module}"


class _PassingCache:
    """What attention takes for a cache; it remembers nothing, but sends keys and values through a function.

    Keys arrive after rotation, as a cache stores them.
    """

    def __init__(self, names: Sequence[str], through: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
        self._names, self._through = names, through

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_more: Any, **_named: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, `[1, num_key_value_heads, S, head_dim]`, as attention goes on with them."""
        key, value = self._names
        return self._through(key, key_states), self._through(value, value_states)
