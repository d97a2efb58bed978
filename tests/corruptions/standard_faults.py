"""Faults of standard ONNX graphs, whose initialisers are called as the checkpoint's tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.corruptions.export_faults import graph
from tests.corruptions.faults import Fault, chosen, cut, delete, faults_of
from tests.corruptions.formats import array_of, initialiser, set_array, swap_contents

_LAYER = "model.layers.0."
_GATE, _UP = f"{_LAYER}mlp.gate_proj", f"{_LAYER}mlp.up_proj"
_HEAD = 16
_FP8_BITS, _SMALL_FP8 = 0x7F, 0x20


def standard_faults(*, fp8: bool) -> list[Fault]:
    """Faults of weights, operators, constants and files; with `fp8` of scales and Q/DQ pairs too."""
    changes = {**_weight_changes(), **_operator_changes(), **(_fp8_changes() if fp8 else {})}
    return [
        *faults_of(changes, graph),
        Fault(name="truncated", plant=cut("model.onnx.data")),
        Fault(name="weights deleted", plant=delete("model.onnx.data")),
        Fault(name="graph deleted", plant=delete("model.onnx")),
        Fault(name="tokenizer deleted", plant=delete("tokenizer.json")),
    ]


@chosen
def scaled(found: Any, name: str, change: Callable[[Any], Any]) -> None:
    """Change a stored number, such as a scale."""
    tensor = initialiser(found, name)
    set_array(tensor, np.asarray(change(array_of(tensor))))


def third_nonzero(found: Any) -> None:
    """A small value where a group of four has a zero."""
    tensor = initialiser(found, f"{_GATE}.weight")
    values = array_of(tensor)
    row = values[3]
    if row.dtype.itemsize == 1:
        bits = row.view(np.uint8)
        bits[np.flatnonzero((bits & _FP8_BITS) == 0)[0]] = _SMALL_FP8
    else:
        row[np.flatnonzero(row == 0)[0]] = 2.0**-10
    set_array(tensor, values)


def flip(found: Any) -> None:
    """The lowest bit of a weight's second value."""
    tensor = initialiser(found, f"{_GATE}.weight")
    values = array_of(tensor)
    values.view(np.uint8).reshape(-1)[values.dtype.itemsize] ^= 1
    set_array(tensor, values)


def drop_pair(found: Any) -> None:
    """Leave out the rounding of a layer's input: QuantizeLinear, DequantizeLinear and the casts around."""
    nodes = {node.name: node for node in found.node}
    product, first = nodes[f"{_GATE}/MatMul"], nodes[f"{_GATE}/Cast"]
    product.input[0] = first.input[0]
    for name in ("Cast", "QuantizeLinear", "DequantizeLinear", "Cast_1"):
        found.node.remove(nodes[f"{_GATE}/{name}"])


def other_scale(found: Any) -> None:
    """Let a layer's input be rounded with another layer's scale."""
    for node in found.node:
        if node.name == f"{_GATE}/QuantizeLinear":
            node.input[1] = f"{_LAYER}self_attn.o_proj.input_scale"


def _weight_changes() -> dict[str, Callable[[Any], None]]:
    @chosen
    def exchanged(found: Any, first: str, second: str) -> None:
        swap_contents(initialiser(found, first), initialiser(found, second))

    def layers(found: Any) -> None:
        for tensor in [t for t in found.initializer if t.name.startswith(_LAYER)]:
            swap_contents(tensor, initialiser(found, tensor.name.replace("layers.0.", "layers.1.")))

    q, k, v = (f"{_LAYER}self_attn.{part}_proj.weight" for part in "qkv")
    return {
        "flipped bit": flip,
        "gate and up": exchanged(f"{_GATE}.weight", f"{_UP}.weight"),
        "q and k": exchanged(q, k),
        "k and v": exchanged(k, v),
        "layers permuted": layers,
        "third non-zero": third_nonzero,
        "tensor missing": lambda found: found.initializer.remove(initialiser(found, q)),
    }


def _operator_changes() -> dict[str, Callable[[Any], None]]:
    def activation(found: Any) -> None:
        for node in found.node:
            if node.op_type == "Sigmoid":
                node.op_type = "Tanh"

    def projections(found: Any) -> None:
        nodes = {node.name: node for node in found.node}
        one, other = nodes[f"{_GATE}/MatMul"], nodes[f"{_UP}/MatMul"]
        one.input[1], other.input[1] = other.input[1], one.input[1]

    frequencies = 10_000.0 ** (-np.arange(0, _HEAD, 2) / _HEAD)
    return {
        "rope": scaled("rope.inverse_frequencies", lambda _: frequencies),
        "eps": scaled("norm.epsilon", lambda value: value * 10),
        "attention scale": scaled("attention.scale", lambda value: value / math.sqrt(2)),
        "heads regrouped": scaled("shape.4_heads", lambda value: value * [1, 1, 2, 1] // [1, 1, 1, 2]),
        "mask": scaled("mask.hidden", np.zeros_like),
        "activation": activation,
        "gate and up, connected": projections,
    }


def _fp8_changes() -> dict[str, Callable[[Any], None]]:
    weight, inputs = f"{_UP}.weight_scale", f"{_UP}.input_scale"
    return {
        "scale dropped": lambda found: found.initializer.remove(initialiser(found, weight)),
        "scale doubled": scaled(weight, lambda value: value * 2),
        "scale 1": scaled(weight, np.ones_like),
        "input scale doubled": scaled(inputs, lambda value: value * 2),
        "input scale 1": scaled(inputs, np.ones_like),
        "Q/DQ pair dropped": drop_pair,
        "scale of another layer": other_scale,
    }
