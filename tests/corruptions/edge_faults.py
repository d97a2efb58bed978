"""Faults of TensorRT-Edge-LLM's graphs, planted by what a node computes: names of tensors say little."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from tests.corruptions.faults import Fault, Plant, assign, cut, delete, faults_of, fields

GRAPH, DATA, CONFIG = "llm/model.onnx", "llm/model.onnx.data", "llm/config.json"
_EMBEDDING = "llm/embedding.safetensors"


def edge_faults(*, fp8: bool) -> list[Fault]:
    """Faults of numbers, operators, files and geometry."""
    changes: dict[str, Callable[[Any], None]] = {
        "flipped bit": lambda found: _set(found, _weights(found)[-4], _flipped),
        "flipped bit, LM head": lambda found: _set(found, _nodes(found, "Gemm")[0].input[1], _flipped),
        "gate and up": _swapped_gate,
        "norms swapped": _swapped_norms,
        "eps": lambda found: _set_number(found, _epsilon(found), 1e-5),
        "residual left out": _without_residual,
        "activation": lambda found: setattr(_nodes(found, "Sigmoid")[0], "op_type", "Tanh"),
        "heads regrouped": _attribute("num_kv_heads", 1),
        "attention scale": _attribute("attention_scale", 0.25),
        "window": _attribute("sliding_window_size", 8),
        "layers permuted": _permuted_caches,
        "third non-zero": _third_nonzero,
        "operator added": _with_operator,
    }
    if fp8:
        changes |= {
            "scale doubled": lambda found: _scaled(found, "weight", 2),
            "scale 1": lambda found: _scaled(found, "weight", None),
            "input scale doubled": lambda found: _scaled(found, "input", 2),
            "Q/DQ pair dropped": without_rounding,
        }
    configs: dict[str, Callable[[dict[str, Any]], None]] = {
        "rope": assign(rope_theta=10_000.0),
        "geometry": assign(num_key_value_heads=8),
        "context": assign(max_position_embeddings=64),
        "end token": assign(eos_token_id=[1]),
    }
    return [
        *faults_of(changes, graph),
        *faults_of(configs, fields, CONFIG),
        Fault(name="embedding", plant=_embedding),
        *(Fault(name=f"{name} deleted", plant=delete(name)) for name in (GRAPH, DATA, CONFIG, _EMBEDDING)),
        Fault(name="tokenizer deleted", plant=delete("llm/tokenizer.json")),
        Fault(name="truncated", plant=cut(DATA)),
    ]


def graph(change: Callable[[Any], None]) -> Plant:
    def plant(directory: Path) -> None:
        model = onnx.load(directory / GRAPH)
        change(model.graph)
        (directory / DATA).unlink()
        onnx.save_model(
            model,
            directory / GRAPH,
            save_as_external_data=True,
            location=Path(DATA).name,
            size_threshold=0,
        )

    return plant


def _nodes(found: Any, operator: str) -> list[Any]:
    return [node for node in found.node if node.op_type == operator]


def _stored(found: Any, name: str) -> Any:
    return next(entry for entry in found.initializer if entry.name == name)


def _set(found: Any, name: str, change: Callable[[Any], Any]) -> None:
    """Change a stored tensor's bytes."""
    entry = _stored(found, name)
    entry.raw_data = change(np.frombuffer(entry.raw_data, np.uint8).copy()).tobytes()


def _flipped(values: Any) -> Any:
    values[0] ^= 1
    return values


def _weights(found: Any) -> list[str]:
    """Names of the layers' matrices, in the order in which the graph multiplies with them."""
    names = []
    makers = {node.output[0]: node for node in found.node}
    for node in _nodes(found, "MatMul"):
        name = node.input[1]
        while name in makers:
            name = makers[name].input[0]
        names.append(name)
    return names


def _swapped_gate(found: Any) -> None:
    """The last layer's matrices of gate and up, which have one shape."""
    gate, up = (_stored(found, name) for name in _weights(found)[-3:-1])
    gate.raw_data, up.raw_data = up.raw_data, gate.raw_data


def _norm_weights(found: Any) -> list[Any]:
    names = {entry.name for entry in found.initializer}
    return [node for node in _nodes(found, "Mul") if node.input[0] in names]


def _swapped_norms(found: Any) -> None:
    first, second = _norm_weights(found)[:2]
    first.input[0], second.input[0] = second.input[0], first.input[0]


def _epsilon(found: Any) -> str:
    roots = {node.input[0] for node in _nodes(found, "Sqrt")}
    name: str = next(node.input[1] for node in found.node if node.output[0] in roots)
    return name


def _set_number(found: Any, name: str, value: float) -> None:
    _stored(found, name).raw_data = np.array(value, np.float32).tobytes()


def _without_residual(found: Any) -> None:
    """The first layer's MLP replaces the stream instead of being added to it."""
    streams = [node for node in _nodes(found, "Add") if node.input[1] not in _names(found)]
    node = streams[1]
    node.input[0] = node.input[1]


def _names(found: Any) -> set[str]:
    return {entry.name for entry in found.initializer}


def _attribute(name: str, value: float) -> Callable[[Any], None]:
    def change(found: Any) -> None:
        node = _nodes(found, "AttentionPlugin")[0]
        entry = next(entry for entry in node.attribute if entry.name == name)
        if entry.type == entry.FLOAT:
            entry.f = value
        else:
            entry.i = int(value)

    return change


def _permuted_caches(found: Any) -> None:
    first, second = _nodes(found, "AttentionPlugin")[:2]
    first.input[1], second.input[1] = second.input[1], first.input[1]


def _third_nonzero(found: Any) -> None:
    """A matrix's first zero becomes a number, bit for bit the smallest that is none."""

    def change(values: Any) -> Any:
        size = 2 if _stored(found, name).data_type == onnx.TensorProto.FLOAT16 else 1
        wide = values.view(np.uint16) if size == 2 else values
        zeros = np.flatnonzero((wide & (0x7FFF if size == 2 else 0x7F)) == 0)
        wide[zeros[0] if len(zeros) else 0] = 0x1400 if size == 2 else 0x20
        return values

    name = _weights(found)[-1]
    _set(found, name, change)


def _with_operator(found: Any) -> None:
    name = _nodes(found, "Gather")[0].output[0]
    found.node.append(onnx.helper.make_node("Neg", [name], ["negated"]))


def _scaled(found: Any, kind: str, factor: float | None) -> None:
    """A scale of its own, so that others that are equal keep theirs: times a factor, or 1."""
    makers = {node.output[0]: node for node in found.node}
    node = next(
        node for node in _nodes(found, "DequantizeLinear") if (node.input[0] in makers) == (kind == "input")
    )
    readers = [node, makers[node.input[0]]] if kind == "input" else [node]
    value = numpy_helper.to_array(_stored(found, node.input[1]))
    changed = np.ones_like(value) if factor is None else value * value.dtype.type(factor)
    found.initializer.append(numpy_helper.from_array(changed, "scale_of_its_own"))
    for reader in readers:
        reader.input[1] = "scale_of_its_own"


def without_rounding(found: Any) -> None:
    """A product reads its input as it is, instead of rounded to FP8."""
    quantise = _nodes(found, "QuantizeLinear")[0]
    dequantise = next(node for node in found.node if list(node.input[:1]) == [quantise.output[0]])
    for node in found.node:
        node.input[:] = [quantise.input[0] if name == dequantise.output[0] else name for name in node.input]
    found.node.remove(dequantise)
    found.node.remove(quantise)


def _embedding(directory: Path) -> None:
    values = load_file(directory / _EMBEDDING)["embedding"].copy()
    values.view(np.uint8).reshape(-1)[1] ^= 1
    save_file({"embedding": values}, directory / _EMBEDDING)
