"""What an FP8 checkpoint quantises, and what its scales are called."""

from __future__ import annotations

from collections.abc import Mapping

from compressor.models.dims import dims_of_config

WEIGHT_SCALE, INPUT_SCALE = ".weight_scale", ".input_scale"
K_SCALE, V_SCALE = ".k_scale", ".v_scale"


def quantised_linears(config: Mapping[str, object]) -> list[str]:
    """Full names of the linear layers that an FP8 checkpoint of this config quantises."""
    return dims_of_config(config).linear_names()


def attention_modules(config: Mapping[str, object]) -> list[str]:
    """Full names of the attention modules, by layer."""
    dims = dims_of_config(config)
    part = dims.family.module("k").rpartition(".")[0]
    return [f"{dims.family.layers}.{index}.{part}" for index in range(dims.num_hidden_layers)]
