"""Writing an ONNX graph node by node: operators of the standard domain, in the order in which they run.

Names are those of the checkpoint: an initialiser is called as its tensor, a node as its module and its
operator, so that a graph can be read beside the model and compared with it name by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor

# The first with FP8, of June 2023; the operators used here are no newer.
OPSET, IR_VERSION = 19, 9
PRODUCER = "compress-export"
IR_TYPES: dict[torch.dtype, ir.DataType] = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.float8_e4m3fn: ir.DataType.FLOAT8E4M3FN,
    torch.int64: ir.DataType.INT64,
    torch.bool: ir.DataType.BOOL,
}
Dimension = int | str


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor that a graph stores: its dtype and shape, and what reads it when it is written."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]


class GraphWriter:
    """A graph in the making."""

    def __init__(self) -> None:
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._initialisers: dict[str, ir.Value] = {}
        self._outputs: list[ir.Value] = []
        self._names: dict[str, int] = {}

    def input(self, name: str, dtype: torch.dtype, shape: Sequence[Dimension]) -> ir.Value:
        """An input of the graph; dimensions that a caller chooses have names."""
        value = ir.Value(name=name, type=ir.TensorType(IR_TYPES[dtype]), shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: torch.dtype, shape: Sequence[Dimension]) -> None:
        """Make a value an output of the graph, under this name."""
        value.name, value.type, value.shape = name, ir.TensorType(IR_TYPES[dtype]), ir.Shape(shape)
        self._outputs.append(value)

    def stored(self, name: str, tensor: StoredTensor) -> ir.Value:
        """An initialiser whose values are read when the graph is written; the same one for the same name."""
        if name in self._initialisers:
            return self._initialisers[name]
        kind, shape = IR_TYPES[tensor.dtype], ir.Shape(tensor.shape)
        lazy = ir.LazyTensor(lambda: TorchTensor(tensor.load().contiguous()), kind, shape, name=name)
        value = ir.Value(name=name, type=ir.TensorType(kind), shape=shape, const_value=lazy)
        self._initialisers[name] = value
        return value

    def constant(self, name: str, values: torch.Tensor) -> ir.Value:
        """A small initialiser that is no weight."""
        return self.stored(
            name, StoredTensor(dtype=values.dtype, shape=tuple(values.shape), load=lambda: values)
        )

    def op(self, at: str, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Add a node of the module `at` with one output; returns that."""
        return self.split(at, op_type, *inputs, num_outputs=1, **attributes)[0]

    def split(
        self, at: str, op_type: str, *inputs: ir.Value, num_outputs: int, **attributes: Any
    ) -> Sequence[ir.Value]:
        """Add a node with several outputs."""
        name = f"{at}/{op_type}"
        number = self._names[name] = self._names.get(name, -1) + 1
        name = f"{name}_{number}" if number else name
        node = ir.node(op_type, inputs, attributes, num_outputs=num_outputs, name=name)
        for index, value in enumerate(node.outputs):
            value.name = f"{name}:{index}"
        self._nodes.append(node)
        outputs: Sequence[ir.Value] = node.outputs
        return outputs

    def cast(self, at: str, value: ir.Value, dtype: torch.dtype) -> ir.Value:
        """A value in another dtype."""
        return self.op(at, "Cast", value, to=int(IR_TYPES[dtype]))

    def model(self, name: str) -> ir.Model:
        """The finished model."""
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._initialisers.values()),
            opset_imports={"": OPSET},
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name=PRODUCER)
