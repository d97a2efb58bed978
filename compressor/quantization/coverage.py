"""What an FP8 checkpoint quantises, and what its scales are called."""

from __future__ import annotations

from collections.abc import Mapping

from compressor.models.dims import dims_of_config

WEIGHT_SCALE, INPUT_SCALE = ".weight_scale", ".input_scale"
K_SCALE, V_SCALE = ".k_scale", ".v_scale"


def quantised_linears(config: Mapping[str, object]) -> list[str]:
    """Full names of the linear layers that an FP8 checkpoint of this config quantises."""
    dims = dims_of_config(config)
    family = dims.family
    return [
        f"{family.layers}.{index}.{name}"
        for index in range(dims.num_hidden_layers)
        for name in family.linear_layers
    ]


def attention_modules(config: Mapping[str, object]) -> list[str]:
    """Full names of the attention modules, by layer."""
    dims = dims_of_config(config)
    part = dims.family.k_proj.rpartition(".")[0]
    return [f"{dims.family.layers}.{index}.{part}" for index in range(dims.num_hidden_layers)]
