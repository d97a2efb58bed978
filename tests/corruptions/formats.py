"""Weights of every format as named tensors that can be changed and written back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from safetensors import safe_open
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
HF_LAYER = "model.layers.{index}."
TRT_LAYER = "transformer.layers.{index}."


def change_tensors(file: Path, change: Callable[[Tensors], None]) -> None:
    with safe_open(file, framework="pt") as reader:
        metadata = reader.metadata()
        tensors = {name: reader.get_tensor(name).clone() for name in reader.keys()}  # noqa: SIM118
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata=metadata)


def place(document: Any, dotted: str) -> tuple[Any, Any]:
    """The list or mapping that holds a field, and its key in it."""
    *path, leaf = [int(part) if part.isdigit() else part for part in dotted.split(".")]
    for part in path:
        document = document[part]
    return document, leaf


def change_json(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite a JSON object in the way it was written."""
    value = json.loads(file.read_text(encoding="utf-8"))
    change(value)
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def change_graph(directory: Path, change: Callable[[Any], None]) -> None:
    """Rewrite an ONNX graph and its weights, under their names."""
    file = directory / "model.onnx"
    model = onnx.load(file)  # with its external data
    data = next(iter(path.name for path in directory.glob("model.onnx?data")), None)
    change(model.graph)
    file.unlink()
    if data is not None:
        (directory / data).unlink()
    onnx.save_model(model, file, save_as_external_data=data is not None, location=data, size_threshold=1024)


def initialiser(graph: Any, ending: str) -> Any:
    found = [tensor for tensor in graph.initializer if tensor.name.endswith(ending)]
    assert len(found) == 1, (ending, [tensor.name for tensor in found])
    return found[0]


def array_of(tensor: Any) -> Any:
    return numpy_helper.to_array(tensor).copy()


def set_array(tensor: Any, values: Any) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(array_of(tensor).dtype), tensor.name))


def swap_contents(first: Any, second: Any) -> None:
    """Exchange the values of two initialisers of one kind and shape."""
    one, two = array_of(first), array_of(second)
    assert one.shape == two.shape
    set_array(first, two)
    set_array(second, one)
