"""A standard graph's content against the student: its tensors, its nodes, its linear layers.

Tensors are computed again from the student's 16-bit weights and the recorded maxima, and must be equal bit
for bit. Nodes must be those that the student's config gives; whether they compute what the student computes
is for the logits to say, and for every linear layer by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch.nn import functional

from compressor.core.errors import VerificationError
from compressor.models.checkpoint import CheckpointReader, read_config
from compressor.models.dims import Dims, dims_of_config
from compressor.quantization.amax import read_amax, recorded
from compressor.quantization.coverage import INPUT_SCALE, K_SCALE, V_SCALE, WEIGHT_SCALE, attention_modules
from compressor.quantization.e4m3 import from_e4m3, scale_of, simulate, to_e4m3
from exporters.checks.equality import expect_bits, expect_equal
from exporters.onnx.builder import GRAPH_FILE
from exporters.onnx.weights import cast_tensor
from exporters.onnx_standard.decoder import FREQUENCIES, build_decoder
from exporters.onnx_standard.execute import LayerValues
from exporters.onnx_standard.stored import StoredModel
from exporters.onnx_standard.tensors import DTYPES, opened_tensors, rope_of, shapes_of, unified_of

MAX_LAYER_DIFFERENCE = 1e-3
# Another version of torch may round a power differently.
_FREQUENCY_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many tensors and nodes were compared."""

    tensors: int
    fp8_weights: int
    scales: int
    nodes: int


def check_content(directory: Path, student: Path, *, precision: str) -> Counts:
    """Compare a graph's nodes and tensors with what the student gives; VerificationError for the first."""
    found, config = StoredModel(directory), read_config(student)
    dims = dims_of_config(config)
    scales = recorded_scales(student, dims) if precision == "fp8" else {}
    with opened_tensors(student, precision) as tensors:
        expected = build_decoder(config, dims, tensors, rope_of(student), dtype=DTYPES[precision])
        num_nodes = _compare_nodes(expected, found, weights=set(tensors))
    with CheckpointReader(student) as reader:
        for name in shapes_of(dims):
            scale = scales.get(name.removesuffix(".weight") + WEIGHT_SCALE)
            if scale is not None:
                wanted = to_e4m3(reader.tensor(name), scale)
            else:
                wanted = cast_tensor(reader, name, DTYPES[precision])
            expect_bits(name, wanted, found.tensor(name), against="the student's")
    for name, scale in scales.items():
        expect_bits(name, scale, found.tensor(name), against="the student's")
    if precision == "fp8":
        _compare_with_unified(found, unified_of(student), dims)
    return Counts(
        tensors=len(shapes_of(dims)),
        fp8_weights=len(dims.linear_names()) if precision == "fp8" else 0,
        scales=len(scales),
        nodes=num_nodes,
    )


def recorded_scales(student: Path, dims: Dims) -> dict[str, torch.Tensor]:
    """Every scale that an FP8 graph must hold, from the maxima that calibration recorded."""
    amax, config = read_amax(student), read_config(student)
    scales = {}
    for name in dims.linear_names():
        scales[name + WEIGHT_SCALE] = scale_of(recorded(amax, f"{name}.weight_amax"))
        scales[name + INPUT_SCALE] = scale_of(recorded(amax, f"{name}.input_amax"))
    with CheckpointReader(unified_of(student)) as unified:
        has_cache_scales = any(name.endswith(K_SCALE) for name in unified)
    if has_cache_scales:
        for index, name in enumerate(attention_modules(config)):
            at = f"{dims.family.layers}.{index}"
            scales[f"{at}.{dims.family.module('k')}{K_SCALE}"] = scale_of(recorded(amax, f"{name}.k_amax"))
            scales[f"{at}.{dims.family.module('v')}{V_SCALE}"] = scale_of(recorded(amax, f"{name}.v_amax"))
    return scales


def check_layers(values: Mapping[str, LayerValues], student: Path, *, precision: str) -> float:
    """Compute every linear layer again from what it read; returns the largest relative difference.

    A layer that differs by more than `MAX_LAYER_DIFFERENCE` of its largest output is a VerificationError.
    """
    is_fp8, worst = precision == "fp8", 0.0
    amax = read_amax(student) if is_fp8 else {}
    with CheckpointReader(student) as reader:
        for name, value in values.items():
            weight, read = reader.tensor(f"{name}.weight"), value.read
            if is_fp8:
                scale = scale_of(recorded(amax, f"{name}.weight_amax"))
                weight = from_e4m3(to_e4m3(weight, scale), scale)
                read = simulate(read, scale_of(recorded(amax, f"{name}.input_amax")))
            else:
                weight = weight.to(DTYPES[precision]).float()
            bias = reader.tensor(f"{name}.bias").float() if f"{name}.bias" in reader else None
            wanted = functional.linear(read, weight, bias)
            difference = float((wanted - value.gave).abs().max() / wanted.abs().max())
            if not difference <= MAX_LAYER_DIFFERENCE:
                raise VerificationError(
                    "a linear layer of the graph computes something else than the student's",
                    where=name,
                    expected=f"at most {MAX_LAYER_DIFFERENCE:g} of its largest output",
                    found=f"{difference:.3g}",
                )
            worst = max(worst, difference)
    return worst


def _compare_with_unified(found: StoredModel, unified: Path, dims: Dims) -> None:
    with CheckpointReader(unified) as reader:
        for name in dims.linear_names():
            for each in (f"{name}.weight", name + WEIGHT_SCALE, name + INPUT_SCALE):
                wanted = reader.tensor(each)
                shaped = wanted if wanted.dim() == 2 else wanted.reshape(())  # noqa: PLR2004 - a matrix
                expect_bits(each, shaped, found.tensor(each), against="the FP8 checkpoint's")


def _compare_nodes(expected: ir.Model, found: StoredModel, *, weights: set[str]) -> int:
    """Compare inputs, outputs, nodes and constants, in their order; returns the number of nodes."""
    model, where = found.model, GRAPH_FILE
    _expect("opset", dict(expected.opset_imports), dict(model.opset_imports), where)
    _expect("number of functions", 0, len(model.functions), where)
    wanted, graph = expected.graph, model.graph
    for kind in ("inputs", "outputs"):
        one, other = ([_typed(value) for value in getattr(each, kind)] for each in (wanted, graph))
        _expect(kind, one, other, where)
    for node, stored_node in zip(_described(wanted), _described(graph), strict=False):
        _expect("node", node, stored_node, f"{where}: {node[0]}")
    _expect("number of nodes", len(wanted), len(graph), where)
    stored, present = wanted.initializers, set(graph.initializers)
    if missing := sorted(set(stored) - present):
        raise VerificationError("the graph lacks a tensor", where=missing[0])
    if unknown := sorted(present - set(stored)):
        raise VerificationError("the graph stores a tensor that the student lacks", where=unknown[0])
    for name in set(stored) - weights:
        value: Any = stored[name].const_value
        _compare_constant(name, StoredModel.values_of(name, value), found.tensor(name))
    return len(wanted)


def _compare_constant(name: str, wanted: torch.Tensor, found: torch.Tensor) -> None:
    if (
        name == FREQUENCIES
        and (wanted.shape, wanted.dtype) == (found.shape, found.dtype)
        and torch.allclose(wanted, found, rtol=_FREQUENCY_TOLERANCE, atol=0)
    ):
        return
    expect_bits(name, wanted, found, against="what the student's config gives")


def _typed(value: ir.Value) -> tuple[str | None, str, list[str]]:
    shape = [] if value.shape is None else [str(each) for each in value.shape]
    return value.name, str(value.dtype), shape


def _described(graph: ir.Graph) -> Iterator[tuple[str, ...]]:
    """Every node as texts: its name first, its operator, what it reads, makes, and its attributes."""
    for node in graph:
        reads, makes = (
            [value.name if value else "" for value in each] for each in (node.inputs, node.outputs)
        )
        attributes = sorted(f"{name}={_plain(each.value)}" for name, each in node.attributes.items())
        yield (
            *(str(node.name), f"{node.domain}:{node.op_type}"),
            *(" ".join(map(str, each)) for each in (reads, makes, attributes)),
        )


def _plain(value: Any) -> str:
    """An attribute's value; floats as the 32-bit numbers that a file holds."""
    if isinstance(value, float):
        return repr(torch.tensor(value, dtype=torch.float32).item())
    return str(list(value)) if isinstance(value, list | tuple) else str(value)


def _expect(what: str, expected: object, found: object, where: str) -> None:
    expect_equal(f"the graph's {what} is not what the student's config gives", expected, found, where=where)
