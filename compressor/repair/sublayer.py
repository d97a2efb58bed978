"""Attention and MLP by themselves: what reads their norm, and what they add to the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import nn

from compressor.calibration.hooks import observed
from compressor.calibration.stream import Stream
from compressor.models.axes import Weight
from compressor.models.families import Family


@dataclass(frozen=True, kw_only=True)
class Sublayer:
    """Attention or MLP of every decoder layer.

    Attributes:
        norm: Name of its norm, relative to the layer.
        readers: The matrices that read the norm.
        writer: The one whose output is added to the residual stream.
        is_attention: Attention is called with more than hidden states.
    """

    norm: str
    readers: tuple[Weight, ...]
    writer: Weight
    is_attention: bool

    @property
    def module(self) -> str:
        """Its own name, relative to the layer."""
        return self.writer.module.rpartition(".")[0]

    def read(self, stream: Stream, index: int, states: torch.Tensor) -> torch.Tensor:
        """What the readers are given, `[1, T, H]`, in the layer in use."""
        x: torch.Tensor = stream.adapter.layers[index].part(self.norm)(stream.placed(states))
        return x

    def seen(
        self, stream: Stream, index: int, states: torch.Tensor, places: Mapping[str, str]
    ) -> dict[str, torch.Tensor]:
        """What passes places on the way, float32 rows `[T, channels]`, in the layer in use.

        Args:
            stream: Whose layer.
            index: Of the layer.
            states: The residual stream before the sublayer.
            places: Modules' names relative to the layer, and "input" or "output".
        """
        layer = stream.adapter.layers[index]
        seen: dict[str, torch.Tensor] = {}

        def observer(name: str) -> Callable[[torch.Tensor], None]:
            def observe(values: torch.Tensor) -> None:
                seen[name] = rows_of(values)
                if len(seen) == len(places):
                    raise _SeenError

            return observe

        hooks: dict[str, list[tuple[nn.Module, Callable[[torch.Tensor], None]]]] = {"input": [], "output": []}
        for name, side in places.items():
            hooks[side].append((layer.part(name), observer(name)))
        with observed(inputs=hooks["input"], outputs=hooks["output"]), suppress(_SeenError):
            if self.is_attention:
                stream.run(index, states)
            else:
                layer.part(self.module)(self.read(stream, index, states))
        return seen


class _SeenError(Exception):
    """Everything that was asked for has been seen; the rest of the layer need not run."""


def sublayers(family: Family) -> tuple[Sublayer, Sublayer]:
    """Attention and MLP of an architecture."""
    by_module = {weight.module: weight for weight in family.linears}
    attention_readers, (o,), mlp_readers, (down,) = (
        tuple(by_module[name] for name in names) for names in family.sharing_input
    )

    def sublayer(readers: tuple[Weight, ...], writer: Weight, *, is_attention: bool) -> Sublayer:
        norm = family.module(str(readers[0].reads))
        return Sublayer(norm=norm, readers=readers, writer=writer, is_attention=is_attention)

    return sublayer(attention_readers, o, is_attention=True), sublayer(mlp_readers, down, is_attention=False)


def rows_of(states: torch.Tensor) -> torch.Tensor:
    """Hidden states as float32 rows `[T, channels]`."""
    return states.flatten(0, -2).float()


def add_(states: torch.Tensor, sublayer: Sublayer, stream: Stream, index: int) -> None:
    """Add a sublayer's output to its stream, in the states' float32.

    In 16 bits the sums would be off by as much as what a repair is to find.
    """
    writer = sublayer.writer.module
    seen = sublayer.seen(stream, index, states, {writer: "output"})
    states.add_(seen[writer].view_as(states).to(states.device))
