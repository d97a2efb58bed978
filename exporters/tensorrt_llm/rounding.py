"""The student as a checkpoint must hold it: cast, or rounded to FP8 with shared scales, value by value.

Computed from the student and the recorded maxima alone, so that it can say what a file should hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from compressor.core.errors import VerificationError
from compressor.models.adapter import ModelAdapter
from compressor.models.checkpoint import CheckpointReader
from compressor.models.dims import Dims
from compressor.quantization.amax import recorded
from compressor.quantization.e4m3 import from_e4m3, scale_of, to_e4m3
from compressor.quantization.reader import simulate_fp8_
from exporters.checks.equality import expect_equal
from exporters.tensorrt_llm.reader import TrtLlmReader


@dataclass(frozen=True, kw_only=True)
class Equal:
    """What was found equal, and whether the cast lost nothing."""

    num_tensors: int
    num_fp8_weights: int
    is_lossless: bool


def groups(dims: Dims) -> Iterator[tuple[str, ...]]:
    """Full names of the linear layers that share a scale."""
    for index in range(dims.num_hidden_layers):
        for modules in dims.family.sharing_input:
            yield tuple(f"{dims.family.layers}.{index}.{module}" for module in modules)


def check_stored(
    reader: TrtLlmReader, student: CheckpointReader, amax: dict[str, torch.Tensor] | None
) -> Equal:
    """Compare every stored number with the student's, cast or rounded once; `amax` where it was recorded."""
    weight_scales = _check_scales(reader, student, amax) if reader.is_fp8 else {}
    dtype, dims, is_lossless = getattr(torch, reader.raw["dtype"]), reader.dims, True
    embedding, head = f"{dims.family.embedding}.weight", f"{dims.family.lm_head}.weight"
    for name, source in reader.tensors.items():
        is_tied_head = name == head and name not in student
        original = student.tensor(embedding if is_tied_head else name)
        found, module = reader.stored(name), name.removesuffix(".weight")
        if module in weight_scales and source.is_linear:
            expected = to_e4m3(original, weight_scales[module]).view(torch.uint8)
            found = found.view(torch.uint8)
        else:
            shifted = original.float() + source.offset if source.offset else original
            expected = shifted.to(dtype)
            is_lossless = is_lossless and torch.equal(expected.float() - source.offset, original.float())
        if not torch.equal(expected, found):
            raise VerificationError(
                "an exported tensor is not the student's",
                where=name,
                expected=f"equal values, {list(expected.shape)}",
                found=f"other values, {list(found.shape)}",
            )
    return Equal(
        num_tensors=len(reader.tensors) - len(weight_scales),
        num_fp8_weights=len(weight_scales),
        is_lossless=is_lossless and not weight_scales,
    )


def round_(model: Any, reader: TrtLlmReader) -> None:
    """Make a float32 student compute with what the checkpoint must hold.

    Weights are rounded here, from the model's own; only input and cache scales come from the file.
    """
    adapter, dtype = ModelAdapter(model), getattr(torch, reader.raw["dtype"])
    weights = dict(model.named_parameters())
    scales: dict[str, torch.Tensor] = {}
    for sharing in groups(adapter.dims) if reader.is_fp8 else ():
        scale = _scale_of(weights[f"{name}.weight"].abs().max() for name in sharing)
        scales |= dict.fromkeys((f"{name}.weight" for name in sharing), scale)
    for name, parameter in weights.items():
        if name in scales:
            rounded = from_e4m3(to_e4m3(parameter, scales[name]), scales[name])
        else:
            offset = reader.tensors[name].offset
            rounded = (parameter + offset).to(dtype).float() - offset
        parameter.data.copy_(rounded)
    if reader.is_fp8:
        simulate_fp8_(model, reader.fp8_scales())


def _check_scales(
    reader: TrtLlmReader, student: CheckpointReader, amax: dict[str, torch.Tensor] | None
) -> dict[str, torch.Tensor]:
    """Every scale follows from the student's weights, and from the recorded maxima."""
    expected_weight = {}
    for sharing in groups(reader.dims):
        scale = _scale_of(student.tensor(f"{name}.weight").abs().max().float() for name in sharing)
        for name in sharing:
            expected_weight[name] = scale
            weight, inputs = reader.scales(f"{name}.weight")
            _expect(f"{name}: weights_scaling_factor", scale, weight)
            if amax is not None:
                input_scale = _scale_of(recorded(amax, f"{other}.input_amax") for other in sharing)
                _expect(f"{name}: activation_scaling_factor", input_scale, inputs)
    if reader.has_fp8_kv_cache and amax is not None:
        _check_cache_scales(reader, amax)
    return expected_weight


def _scale_of(maxima: Iterable[torch.Tensor]) -> torch.Tensor:
    return scale_of(torch.stack(list(maxima)).max())


def _check_cache_scales(reader: TrtLlmReader, amax: dict[str, torch.Tensor]) -> None:
    family = reader.dims.family
    attention = family.module("k").rpartition(".")[0]
    for layer in range(reader.dims.num_hidden_layers):
        name = f"{family.layers}.{layer}.{attention}"
        wanted = {kind: max(1.0, scale_of(recorded(amax, f"{name}.{kind}_amax")).item()) for kind in "kv"}
        wanted["kv"] = max(wanted["k"], wanted["v"])
        for kind, value in wanted.items():
            _expect(f"{name}: {kind}_cache_scaling_factor", torch.tensor(value), reader.kv_scale(layer, kind))


def _expect(name: str, expected: torch.Tensor, found: torch.Tensor) -> None:
    expect_equal("a scale does not follow from calibration", expected.item(), found.item(), where=name)
