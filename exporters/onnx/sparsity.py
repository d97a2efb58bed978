"""A graph's stored weights against the promised N:M pattern, tensor by tensor.

Full-precision weights are stored transposed, `[in, out]`, with q, k and v possibly joined; int4 weights
as `MatMulNBits` blobs `[out, blocks, block bytes]`, two values a byte, the lower half first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compressor.core.errors import UnsupportedError, VerificationError
from compressor.models.families import family_of
from compressor.models.sparse.pattern import check_pattern
from compressor.models.sparse.record import Promise
from exporters.onnx.builder import GRAPH_FILE
from exporters.onnx.weights import read_initialiser

_STORED = ".MatMul.weight"
_INT4_BITS, _INT4_ZERO = 4, 8


def check_graph_sparsity(directory: Path, promise: Promise) -> int:
    """Check every promised tensor of a graph; returns their number.

    Raises:
        VerificationError: naming the first that is missing, or has too many non-zeros.
    """
    graph = _Graph(directory)
    for name, (initialiser, rows) in stored_names(promise, graph.names()).items():
        check_pattern(name, graph.matrix(initialiser)[rows], promise.pattern)
    return len(promise.shapes)


def stored_names(promise: Promise, stored: set[str]) -> dict[str, tuple[str, slice]]:
    """Where a graph keeps each promised tensor: the stored matrix, and its rows (outputs) in it.

    Args:
        promise: Names and shapes of the student's tensors.
        stored: Names found in the graph, such as `model.layers.0.attn.qkv_proj.MatMul.weight`.
    """
    family = family_of(promise.model_type)
    joined = tuple(map(family.module, "qkv"))
    found = {}
    for name in promise.shapes:
        index, _, part = name.removeprefix(f"{family.layers}.").removesuffix(".weight").partition(".")
        prefix, leaf = f"model.layers.{index}.", part.rpartition(".")[2]
        own = (
            f"{prefix}attn.{leaf}{_STORED}"
            if part in (*joined, family.module("o"))
            else f"{prefix}{part}{_STORED}"
        )
        fused = f"{prefix}attn.qkv_proj{_STORED}"
        if own in stored or part not in joined or fused not in stored:
            found[name] = (own, slice(None))
            continue
        found[name] = (fused, _rows_of(promise, f"{family.layers}.{index}.", joined, part))
    return found


def _rows_of(promise: Promise, prefix: str, joined: tuple[str, ...], part: str) -> slice:
    """A part's rows among joined ones, counted from the end where a part before it is not promised."""
    sizes = [promise.shapes.get(f"{prefix}{name}.weight", (None, 0))[0] for name in joined]
    position = joined.index(part)
    before, after = sizes[:position], sizes[position + 1 :]
    size = promise.shapes[f"{prefix}{part}.weight"][0]
    if None not in before:
        start = sum(filter(None, before))
        return slice(start, start + size)
    if None not in after:
        end = -sum(filter(None, after)) or None
        return slice((end or 0) - size, end)
    # k alone between parts that are not promised: v is as large as k.
    return slice(-2 * size, -size)


class _Graph:
    """The matrices of a graph by their stored name, read one at a time as `[out, in]`."""

    def __init__(self, directory: Path) -> None:
        import onnx

        self._directory = directory
        graph = onnx.load(directory / GRAPH_FILE, load_external_data=False).graph
        self._initialisers = {entry.name: entry for entry in graph.initializer}
        self._quantised = {
            node.input[1].partition(_STORED)[0] + _STORED: node
            for node in graph.node
            if node.op_type == "MatMulNBits"
        }

    def names(self) -> set[str]:
        return {*self._initialisers, *self._quantised}

    def matrix(self, name: str) -> torch.Tensor:
        """One matrix `[out, in]`: values, or for int4 their distance from the zero point."""
        if name in self._quantised:
            return self._unpacked(self._quantised[name])
        return self._tensor(name).T

    def _tensor(self, name: str) -> torch.Tensor:
        if name not in self._initialisers:
            raise VerificationError("the graph lacks a weight", where=name)
        return read_initialiser(self._initialisers[name], self._directory)

    def _unpacked(self, node: Any) -> torch.Tensor:
        sizes: Mapping[str, int] = {entry.name: entry.i for entry in node.attribute}
        if sizes["bits"] != _INT4_BITS:
            raise UnsupportedError("this bit width is not read", where=node.name, found=sizes["bits"])
        columns, rows = sizes["K"], sizes["N"]
        values = _nibbles(self._tensor(node.input[1]).reshape(rows, -1))
        blocks = values.reshape(rows, -1, sizes["block_size"]).to(torch.int16)
        zero: torch.Tensor | int = _INT4_ZERO
        if len(node.input) > 3 and node.input[3]:  # noqa: PLR2004 - A, B, scales, zero points
            points = _nibbles(self._tensor(node.input[3]).reshape(rows, -1))
            zero = points[:, : blocks.shape[1], None].to(torch.int16)
        return (blocks - zero).reshape(rows, -1)[:, :columns]


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Two values of every byte, the lower half first; the last dimension doubles."""
    return torch.stack((packed & 0xF, packed >> _INT4_BITS), dim=-1).flatten(-2)
