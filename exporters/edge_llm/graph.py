"""Reading TensorRT-Edge-LLM's ONNX graph: its nodes by what they make, and its stored tensors.

A graph is walked backwards from its outputs. Every step says which operator it expects, with which
attributes; whatever else stands there is refused, and so is a node that no step came by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from compressor.core.errors import VerificationError
from exporters.onnx.builder import load_graph

# Of ONNX's tensor types, those that such a graph stores.
DTYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    6: torch.int32,
    7: torch.int64,
    10: torch.float16,
    17: torch.float8_e4m3fn,
}
_STANDARD = ("", "ai.onnx")


class EdgeGraph:
    """One `model.onnx` and the data beside it; whatever is wrong is a VerificationError by name."""

    def __init__(self, directory: Path) -> None:
        """Read the graph, without the data of its tensors."""
        self.directory = directory
        self.graph = load_graph(directory).graph
        self.stored = {entry.name: entry for entry in self.graph.initializer}
        self.inputs = {entry.name for entry in self.graph.input}
        self.outputs = [entry.name for entry in self.graph.output]
        self._makers = {name: node for node in self.graph.node for name in node.output if name}
        self._seen: set[str] = set()

    def step(
        self,
        value: str,
        operator: str,
        *,
        domain: str = "",
        attributes: Mapping[str, Any] | None = None,
        ignoring: Sequence[str] = (),
    ) -> list[str]:
        """The inputs of the node that makes `value`, which must be this operator with these attributes.

        It may have others of the names in `ignoring`, and none beside them.
        """
        node = self.maker(value)
        found = (node.op_type, "" if node.domain in _STANDARD else node.domain)
        if found != (operator, domain):
            raise VerificationError(
                "the graph computes something else than the model",
                where=f"{self.directory}: {node.name or value}",
                expected=operator,
                found=node.op_type,
            )
        self._expect_attributes(node, attributes or {}, ignoring)
        self._seen.add(node.output[0])
        return list(node.input)

    def attribute(self, value: str, name: str) -> Any:
        """An attribute of the node that makes `value`."""
        return _attributes_of(self.maker(value)).get(name)

    def maker(self, value: str) -> Any:
        """The node that makes `value`."""
        if value not in self._makers:
            kind = (
                "an input"
                if value in self.inputs
                else "a stored tensor"
                if value in self.stored
                else "nothing"
            )
            raise VerificationError(
                "the graph computes something else than the model",
                where=f"{self.directory}: {value}",
                expected="the result of an operator",
                found=kind,
            )
        return self._makers[value]

    def expect_value(self, expected: str, found: str, *, what: str) -> None:
        """Refuse another value than the expected one where two steps must read the same."""
        if expected != found:
            raise VerificationError(
                f"the graph reads another value for {what}",
                where=f"{self.directory}: model.onnx",
                expected=expected,
                found=found,
            )

    def stores(self, dtype: torch.dtype) -> bool:
        """Whether any stored tensor has this type."""
        return any(DTYPES.get(entry.data_type) == dtype for entry in self.stored.values())

    def tensor(self, name: str) -> torch.Tensor:
        """A stored tensor's values, from the graph or from the data beside it, which must be whole."""
        if name not in self.stored:
            raise VerificationError("the graph stores no such tensor", where=f"{self.directory}: {name}")
        entry = self.stored[name]
        if entry.data_type not in DTYPES:
            raise VerificationError(
                "the graph stores a tensor in an unexpected type",
                where=f"{self.directory}: {name}",
                expected=", ".join(str(dtype) for dtype in DTYPES.values()),
                found=entry.data_type,
            )
        values = _bytes_of(entry, self.directory)
        dtype, shape = DTYPES[entry.data_type], tuple(entry.dims)
        expected = torch.Size(shape).numel() * dtype.itemsize
        if len(values) != expected:
            raise VerificationError(
                "the graph's weights are missing or truncated",
                where=f"{self.directory}: {name}",
                expected=f"{expected:,} bytes",
                found=f"{len(values):,}",
            )
        if not expected:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(bytearray(values), dtype=dtype).reshape(shape)

    def expect_constant(self, name: str, expected: Sequence[float], *, what: str) -> None:
        """Refuse a stored constant with other numbers than these."""
        found = self.tensor(name).flatten().tolist()
        if found != list(expected):
            raise VerificationError(
                f"the graph has another {what}",
                where=f"{self.directory}: {name}",
                expected=list(expected),
                found=found[:8],
            )

    def expect_nothing_left(self) -> None:
        """Refuse nodes that no step came by, and stored tensors that no node reads."""
        for node in self.graph.node:
            if node.output[0] not in self._seen:
                raise VerificationError(
                    "the graph holds an operator that the model lacks",
                    where=f"{self.directory}: {node.name or list(node.output)}",
                    found=node.op_type,
                )
        read = {name for node in self.graph.node for name in node.input}
        if left := sorted(set(self.stored) - read):
            raise VerificationError(
                "the graph stores a tensor that the model lacks", where=f"{self.directory}: {left[0]}"
            )

    def _expect_attributes(self, node: Any, expected: Mapping[str, Any], ignoring: Sequence[str]) -> None:
        found = _attributes_of(node)
        for name in sorted({*found, *expected} - set(ignoring)):
            if found.get(name) != expected.get(name):
                raise VerificationError(
                    "an operator of the graph has another attribute than the model",
                    where=f"{self.directory}: {node.name or node.op_type}: {name}",
                    expected=expected.get(name),
                    found=found.get(name),
                )


def _attributes_of(node: Any) -> dict[str, Any]:
    """A node's attributes as plain values."""
    from onnx import helper

    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def _bytes_of(entry: Any, directory: Path) -> bytes:
    """A tensor's bytes; its data may lie beside the graph, in it, or in it in a field of its type."""
    from onnx import TensorProto, checker, external_data_helper, numpy_helper

    try:
        if external_data_helper.uses_external_data(entry):
            copied = TensorProto()
            copied.CopyFrom(entry)
            external_data_helper.load_external_data_for_tensor(copied, str(directory))
            return bytes(copied.raw_data)
        if entry.HasField("raw_data"):
            return bytes(entry.raw_data)
        return bytes(numpy_helper.to_array(entry).tobytes())
    except (OSError, ValueError, checker.ValidationError) as error:
        raise VerificationError(
            "the graph's weights are missing or truncated", where=f"{directory}: {entry.name}", found=error
        ) from error
