"""Record what NVIDIA's `tensorrt-edgellm` writes: its graphs' operators, for the stand-in to write the same.

    python -m tests.oracles.record_edge_llm PYTHON

converts the cases below with the package in that Python's environment. A graph is kept node by node:
operator, attributes, and each input as the node that makes it, the graph's own input, or the type, shape and,
of shapes and numbers, the values of a stored tensor. Names of nodes and tensors are not kept.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from compressor.core.console import Console
from compressor.models.checkpoint import CheckpointReader, read_config
from compressor.quantization.amax import FP8_DIRECTORY, write_amax
from compressor.quantization.coverage import attention_modules, quantised_linears
from compressor.quantization.e4m3 import scale_of, to_e4m3
from exporters.edge_llm.package import convert, require_converter
from tests.tiny_models import edit_json, edit_tensors, make_model, save_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden" / "edge_llm"
_SMALL = 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """A tiny student of one family, in 16 bits or FP8, and its fields that differ from the others'."""

    model_type: str
    fp8: bool = False
    cache: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)


CASES = {
    "llama": Case(model_type="llama"),
    "llama-untied": Case(model_type="llama", overrides={"tie_word_embeddings": False}),
    "qwen2": Case(model_type="qwen2", overrides={"hidden_size": 256}),
    "qwen3": Case(model_type="qwen3"),
    "llama-fp8": Case(model_type="llama", fp8=True),
    "llama-fp8-cache": Case(model_type="llama", fp8=True, cache=True),
    "qwen2-fp8": Case(model_type="qwen2", fp8=True, overrides={"hidden_size": 256}),
}


def make_case(case: Case, directory: Path) -> Path:
    """The case's checkpoint, with head sizes that TensorRT-Edge-LLM has kernels for."""
    fields = {
        "head_dim": 64,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        **case.overrides,
    }
    save_checkpoint(directory, make_model(case.model_type, **fields).to(torch.bfloat16))
    return quantised(directory, cache=case.cache) if case.fp8 else directory


def quantised(student: Path, *, cache: bool = False) -> Path:
    """What the quantize stage leaves of a 16-bit checkpoint, by hand: recorded maxima, and the FP8 twin."""
    config, amax = read_config(student), {}
    with CheckpointReader(student) as reader:
        for number, name in enumerate(quantised_linears(config)):
            amax[f"{name}.weight_amax"] = reader.tensor(f"{name}.weight").abs().max().float()
            # Linear layers that share an input share its maximum.
            group = number // 7 * 4 + (0, 0, 0, 1, 2, 2, 3)[number % 7]
            amax[f"{name}.input_amax"] = torch.tensor(4.0 + group)
    for name in attention_modules(config):
        amax |= {f"{name}.k_amax": torch.tensor(7.0), f"{name}.v_amax": torch.tensor(5.5)}
    twin = shutil.copytree(student, student / FP8_DIRECTORY)
    write_amax(student, amax)
    edit_tensors(twin, lambda tensors: _round_(tensors, amax, cache=cache))
    write_record(twin, cache=cache)
    return student


def _round_(tensors: dict[str, torch.Tensor], amax: dict[str, torch.Tensor], *, cache: bool) -> None:
    for name, value in amax.items():
        module, kind = name.rsplit(".", 1)
        scale = scale_of(value)
        if kind == "weight_amax":
            tensors[f"{module}.weight"] = to_e4m3(tensors[f"{module}.weight"], scale)
            tensors[f"{module}.weight_scale"] = scale
        elif kind == "input_amax":
            tensors[f"{module}.input_scale"] = scale
        elif cache:
            tensors[f"{module}.{kind[0]}_proj.{kind[0]}_scale"] = scale


def write_record(directory: Path, *, cache: bool) -> None:
    """Say in both files that servers read that a checkpoint is FP8."""
    quantization = {
        "quant_algo": "FP8",
        "kv_cache_quant_algo": "FP8" if cache else None,
        "exclude_modules": ["lm_head"],
    }
    edit_json(directory / "config.json", quantization_config={**quantization, "quant_method": "modelopt"})
    record = {"producer": {"name": "modelopt", "version": "0.47.0"}, "quantization": quantization}
    (directory / "hf_quant_config.json").write_text(json.dumps(record), encoding="utf-8")


def structure(directory: Path) -> dict[str, Any]:
    """A graph without its names and weights."""
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    stored = {entry.name: entry for entry in model.graph.initializer}
    made = {name: f"{number}.{place}" for number, node in enumerate(model.graph.node)
            for place, name in enumerate(node.output)}  # fmt: skip

    def source(name: str) -> object:
        if name in made:
            return made[name]
        return _stored(stored[name], directory) if name in stored else name

    nodes = [
        [node.op_type, node.domain, _attributes(node), [source(name) for name in node.input]]
        for node in model.graph.node
    ]
    return {
        "opsets": sorted([entry.domain, entry.version] for entry in model.opset_import),
        "outputs": [entry.name for entry in model.graph.output],
        "nodes": nodes,
    }


def _attributes(node: Any) -> dict[str, object]:
    found = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    return {
        name: value.decode() if isinstance(value, bytes) else value for name, value in sorted(found.items())
    }


def _stored(entry: Any, directory: Path) -> list[object]:
    kind, shape = TensorProto.DataType.Name(entry.data_type), list(entry.dims)
    is_weight = entry.data_type not in (TensorProto.INT64, TensorProto.FLOAT)
    if is_weight or torch.Size(shape).numel() > _SMALL:
        return [kind, shape]
    copied = TensorProto()
    copied.CopyFrom(entry)
    if external_data_helper.uses_external_data(copied):
        external_data_helper.load_external_data_for_tensor(copied, str(directory))
        copied.data_location = TensorProto.DEFAULT
    return [kind, shape, numpy_helper.to_array(copied).tolist()]


def config_of(directory: Path) -> dict[str, Any]:
    """The runtime's config beside the graph."""
    found: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Convert every case and keep its structure."""
    converter = require_converter(sys.argv[1])
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as scratch:
            checkpoint, out = make_case(case, Path(scratch) / "student"), Path(scratch) / "out"
            out.mkdir()
            source = checkpoint / FP8_DIRECTORY if case.fp8 else checkpoint
            convert(source, checkpoint, out, converter, Console())
            record = {
                "recorded_with": {"tensorrt-edgellm": converter.version},
                **structure(out / "llm"),
                "config": config_of(out / "llm"),
            }
        (GOLDEN / f"{name}.json").write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
