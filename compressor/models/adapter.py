"""Typed access to a loaded model's parts by role, through the table of families."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from compressor.models.dims import Dims, dims_of_config
from compressor.models.families import Family


@dataclass(frozen=True)
class DecoderLayer:
    """One decoder layer and its parts."""

    module: nn.Module
    family: Family

    def part(self, name: str) -> nn.Module:
        """The module at a name relative to the layer."""
        return self.module.get_submodule(name)

    def linear_layers(self) -> dict[str, nn.Linear]:
        """All linear layers, by their name relative to the layer."""
        return {name: cast(nn.Linear, self.part(name)) for name in self.family.linear_layers}


@dataclass(frozen=True)
class ModelAdapter:
    """A causal language model seen through its family."""

    model: Any

    @property
    def dims(self) -> Dims:
        """The model's dimensions."""
        return dims_of_config(self.model.config.to_dict())

    @property
    def family(self) -> Family:
        """The architecture's row in the table."""
        return self.dims.family

    @property
    def layers(self) -> list[DecoderLayer]:
        """The decoder layers in order."""
        family = self.family
        modules = cast(nn.ModuleList, self.model.get_submodule(family.layers))
        return [DecoderLayer(module, family) for module in modules]

    @property
    def body(self) -> nn.Module:
        """Everything before the LM head; its output's `last_hidden_state` is `[batch, seq, hidden_size]`."""
        return cast(nn.Module, self.model.base_model)

    @property
    def lm_head_weight(self) -> torch.Tensor:
        """The LM head's weight, `[vocab_size, hidden_size]`; the embedding itself when tied."""
        return cast(torch.Tensor, self.model.get_output_embeddings().weight)
