"""Every number of a TensorRT-Edge-LLM export against the student's, cast to float16 or rounded to FP8."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from compressor.core.errors import UnsupportedError
from compressor.models.axes import Weight
from compressor.models.checkpoint import CheckpointReader, read_config
from compressor.models.dims import Dims
from compressor.quantization.amax import AMAX_FILE, read_amax, recorded
from compressor.quantization.coverage import attention_modules, quantised_linears
from compressor.quantization.e4m3 import scale_of, to_e4m3
from exporters.checks.equality import expect_bits, expect_equal
from exporters.checks.requantised import weight_scales
from exporters.edge_llm.expressible import check_scale
from exporters.edge_llm.reader import EdgeReader

_AGAINST = "the student's"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What was found equal, and how many 16-bit tensors the cast to float16 changed."""

    num_tensors: int
    num_fp8_weights: int
    num_scales: int
    num_bytes: int
    num_changed_by_float16: int


def compare(reader: EdgeReader, student: Path) -> Compared:
    """Compare every stored tensor and scale; `student` may be the quantize stage's artifact.

    Its recorded maxima say what every scale must be; without them the scales of inputs are not compared.
    """
    amax = read_amax(student) if (student / AMAX_FILE).is_file() else None
    weights = weight_scales(student) if reader.is_fp8 else {}
    num_fp8 = num_bytes = num_changed = num_scales = 0
    with CheckpointReader(student) as original:
        for name, (weight, index) in reader.weights.items():
            found, source = reader.stored(name), original.tensor(_source_of(name, reader.dims, original))
            num_bytes += found.numel() * found.element_size()
            if reader.is_fp8 and index is not None and weight.columns is not None:
                module = name.removesuffix(".weight")
                expect_bits(name, to_e4m3(source, weights[module]), found, against=_AGAINST)
                num_scales += _compare_scales(reader, index, weight, module, weights[module], amax)
                num_fp8 += 1
            else:
                cast = source.to(torch.float16)
                expect_bits(name, cast, found, against=f"{_AGAINST} in float16")
                num_changed += not torch.equal(cast.double(), source.double())
    if amax is not None and reader.has_fp8_kv_cache:
        num_scales += _compare_cache(reader, amax)
    return Compared(
        num_tensors=len(reader.weights) - num_fp8,
        num_fp8_weights=num_fp8,
        num_scales=num_scales,
        num_bytes=num_bytes,
        num_changed_by_float16=num_changed,
    )


def require_castable(source: Path, *, fp8: bool) -> None:
    """Refuse (UnsupportedError), before the conversion, what float16 cannot hold: weights, and FP8 scales."""
    config = read_config(source)
    quantised = {f"{name}.weight" for name in quantised_linears(config)} if fp8 else set()
    with CheckpointReader(source) as original:
        for name in original:
            if name not in quantised and not torch.isfinite(original.tensor(name).to(torch.float16)).all():
                raise UnsupportedError(
                    "TensorRT-Edge-LLM computes in float16, which does not hold this weight",
                    where=name,
                    expected=f"at most {torch.finfo(torch.float16).max:g}",
                    found=f"{original.tensor(name).abs().max().item():.3g}",
                    hint="leave tensorrt-edge-llm out of the formats; --format huggingface keeps bfloat16",
                )
    for name, value in (read_amax(source) if fp8 else {}).items():
        if name.endswith((".weight_amax", ".input_amax")):
            check_scale(name.replace("_amax", "_scale"), scale_of(value))


def _source_of(name: str, dims: Dims, original: CheckpointReader) -> str:
    """The student's tensor; the embedding for the LM head of a tied model."""
    if name in original or name != f"{dims.family.lm_head}.weight":
        return name
    return f"{dims.family.embedding}.weight"


def _compare_scales(
    reader: EdgeReader,
    index: int,
    weight: Weight,
    module: str,
    weight_scale: torch.Tensor,
    amax: dict[str, torch.Tensor] | None,
) -> int:
    """Compare the scales of every part of a linear layer; returns how many."""
    expected = {"weight_scale": weight_scale}
    if amax is not None:
        expected["input_scale"] = scale_of(recorded(amax, f"{module}.input_amax"))
        what = "the recorded maximum is not the weight's"
        recorded_scale = scale_of(recorded(amax, f"{module}.weight_amax")).item()
        expect_equal(what, expected["weight_scale"].item(), recorded_scale, where=f"{module}.weight_amax")
    for part in weight.rows:
        found = dict(zip(("weight_scale", "input_scale"), reader.scales(index, part), strict=True))
        for name, scale in expected.items():
            cast = scale.to(torch.float16).reshape(())
            expect_bits(f"{module}.{name}", cast, found[name].reshape(()), against=f"{_AGAINST} in float16")
    return len(expected) * len(weight.rows)


def _compare_cache(reader: EdgeReader, amax: dict[str, torch.Tensor]) -> int:
    """Compare the scales of keys and values; returns how many."""
    modules = attention_modules({**reader.config, "model_type": reader.dims.model_type})
    for module, layer in zip(modules, reader.model.layers, strict=True):
        expected = tuple(scale_of(recorded(amax, f"{module}.{part}_amax")).item() for part in "kv")
        expect_equal("the cache's scales are not the student's", expected, layer.cache_scales, where=module)
    return 2 * len(modules)
