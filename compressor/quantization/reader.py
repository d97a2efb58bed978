"""Our own reader of unified FP8 checkpoints: scaled weights, and activations as FP8 kernels see them.

Stock transformers loads such a checkpoint without its scales, silently, with weights thousands of
times too large. Here weights become E4M3 value times scale, and the input of every quantised linear
layer is rounded to E4M3 with its recorded scale. Where the checkpoint holds KV-cache scales, keys
(after rotation) and values are rounded as well, on their way into the cache. No ModelOpt is involved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from compressor.core.errors import UsageError, VerificationError
from compressor.models.adapter import ModelAdapter
from compressor.models.checkpoint import CheckpointReader, read_config
from compressor.models.dims import dims_of_config
from compressor.models.shapes import refuse_misfit
from compressor.quantization.amax import check_positive
from compressor.quantization.coverage import (
    INPUT_SCALE,
    K_SCALE,
    V_SCALE,
    WEIGHT_SCALE,
    quantised_linears,
)
from compressor.quantization.e4m3 import E4M3, from_e4m3, simulate
from compressor.quantization.record import check_record, is_fp8

_SCALES = (WEIGHT_SCALE, INPUT_SCALE, K_SCALE, V_SCALE)


@dataclass(frozen=True, kw_only=True)
class Fp8Scales:
    """The checked scales of a checkpoint, float32 scalars: of weights and inputs by linear layer.

    Those of keys and values are by layer index, and empty when the KV cache stays 16-bit.
    """

    weights: dict[str, torch.Tensor]
    inputs: dict[str, torch.Tensor]
    keys: dict[int, torch.Tensor]
    values: dict[int, torch.Tensor]


def read_scales(reader: CheckpointReader, config: Mapping[str, object]) -> Fp8Scales:
    """Read every scale and refuse what would silently compute something else.

    Raises:
        VerificationError: naming a scale that is missing, zero, not finite or without its weight, a
            linear layer that is not FP8, or scales that are all 1.0 (a writer that never set them).
    """
    linears = quantised_linears(config)
    for name in linears:
        dtype = reader.tensor(f"{name}.weight").dtype
        if dtype != E4M3:
            raise VerificationError("a weight is not FP8", where=f"{name}.weight", expected=E4M3, found=dtype)
    weights = {name: _scale(reader, name + WEIGHT_SCALE) for name in linears}
    inputs = {name: _scale(reader, name + INPUT_SCALE) for name in linears}
    for kind, scales in (("weight", weights), ("input", inputs)):
        if all(scale.item() == 1.0 for scale in scales.values()):
            raise VerificationError(f"every {kind} scale is 1.0", where="scales", expected="amax / 448")
    dims = dims_of_config(config)
    expected = {name + suffix for name in linears for suffix in (WEIGHT_SCALE, INPUT_SCALE)}
    keys, values = {}, {}
    if any(name.endswith((K_SCALE, V_SCALE)) for name in reader):
        for index in range(dims.num_hidden_layers):
            prefix = f"{dims.family.layers}.{index}."
            key = f"{prefix}{dims.family.module('k')}{K_SCALE}"
            value = f"{prefix}{dims.family.module('v')}{V_SCALE}"
            keys[index], values[index] = _scale(reader, key), _scale(reader, value)
            expected |= {key, value}
    left_over = sorted(name for name in reader if name.endswith(_SCALES) and name not in expected)
    if left_over:
        raise VerificationError("a scale belongs to no quantised layer", where=left_over[0])
    return Fp8Scales(weights=weights, inputs=inputs, keys=keys, values=values)


def load_fp8_model(directory: Path, *, dtype: str, device: str) -> Any:
    """Load a unified FP8 checkpoint for evaluation, computing as FP8 kernels would, weights in this dtype.

    Raises:
        UsageError: when the checkpoint is not an FP8 one.
        VerificationError: for scales or tensors that are missing or unusable, by name.
    """
    from transformers import AutoConfig

    plain = read_config(directory)
    with CheckpointReader(directory) as reader:
        if not is_fp8(directory, reader):
            raise UsageError(
                "this checkpoint is not quantised",
                where=str(directory),
                expected="quantization_config in config.json",
                hint="make such a checkpoint with `compress-export quantize --fp8`",
            )
        check_record(directory, reader)
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        del config.quantization_config
        scales = read_scales(reader, plain)
        state = _dequantised(reader, scales, getattr(torch, dtype))
    model = model_of_state(config, state, dtype=dtype, where=directory)
    simulate_fp8_(model, scales)
    return model.to(device).eval().requires_grad_(requires_grad=False)


def model_of_state(config: Any, state: dict[str, torch.Tensor], *, dtype: str, where: Path) -> Any:
    """A causal language model from its config object and every one of its tensors; see `refuse_misfit`."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        None, config=config, state_dict=state, dtype=getattr(torch, dtype), output_loading_info=True
    )
    refuse_misfit(report, where)
    return model


def simulate_fp8_(model: Any, scales: Fp8Scales) -> None:
    """Make a model round the inputs of its quantised layers, and its KV cache, as FP8 kernels would."""
    for name, scale in scales.inputs.items():
        linear = cast(nn.Linear, model.get_submodule(name))
        model.set_submodule(name, SimulatedFp8Linear.of(linear, scale))
    if scales.keys:
        _simulate_kv_cache_(model, scales)


class SimulatedFp8Linear(nn.Linear):
    """A linear layer whose input is rounded to E4M3 first."""

    input_scale: torch.Tensor

    @classmethod
    def of(cls, linear: nn.Linear, input_scale: torch.Tensor) -> SimulatedFp8Linear:
        """The same layer with the same parameters, and an input scale."""
        made = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        made.weight, made.bias = linear.weight, linear.bias
        made.register_buffer("input_scale", input_scale)
        return made

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's name for it
        """The layer's output for the rounded input."""
        return super().forward(simulate(input, self.input_scale))


def _scale(reader: CheckpointReader, name: str) -> torch.Tensor:
    if name not in reader:
        raise VerificationError("the checkpoint lacks a scale", where=name)
    scale = reader.tensor(name)
    check_positive(name, scale, what="a scale is unusable")
    return scale.float().reshape(())


def _dequantised(reader: CheckpointReader, scales: Fp8Scales, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every tensor but the scales, FP8 weights multiplied out in float32."""
    state = {}
    for name in reader:
        if name.endswith(_SCALES):
            continue
        tensor = reader.tensor(name)
        module = name.removesuffix(".weight")
        if tensor.dtype == E4M3:
            if module not in scales.weights:
                raise VerificationError("an FP8 weight has no scale", where=name)
            tensor = from_e4m3(tensor, scales.weights[module])
        state[name] = tensor.to(dtype)
    return state


def _simulate_kv_cache_(model: Any, scales: Fp8Scales) -> None:
    """Give every forward pass without a cache of its own one that rounds what enters it."""
    from transformers import DynamicCache

    class Fp8Cache(DynamicCache):
        def update(
            self,
            key_states: torch.Tensor,
            value_states: torch.Tensor,
            layer_idx: int,
            *more: Any,
            **named: Any,
        ) -> Any:
            keys = simulate(key_states, scales.keys[layer_idx].to(key_states.device))
            values = simulate(value_states, scales.values[layer_idx].to(key_states.device))
            return super().update(keys, values, layer_idx, *more, **named)

    def provide_cache(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[Any, ...], dict[str, object]]:
        if kwargs.get("past_key_values") is None:
            kwargs = {**kwargs, "past_key_values": Fp8Cache(), "use_cache": True}
        return args, kwargs

    # The hook is part of this model for as long as it lives.
    ModelAdapter(model).body.register_forward_pre_hook(provide_cache, with_kwargs=True)
