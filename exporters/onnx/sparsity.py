"""A graph's stored weights against the recorded N:M pattern, tensor by tensor.

Full-precision weights are stored transposed, `[in, out]`, with q, k and v possibly joined; int4 weights as
codes, where the code of the zero point is a zero.
"""

from __future__ import annotations

from pathlib import Path

from compressor.models.families import family_of
from compressor.models.sparse.masks import check_pattern
from compressor.models.sparse.record import SparsityRecord
from exporters.onnx.int4 import Int4Graph

_STORED = ".MatMul.weight"


def check_graph_sparsity(directory: Path, sparsity: SparsityRecord) -> int:
    """Check every recorded tensor of a graph; returns their number."""
    graph = Int4Graph(directory)
    for name, (initialiser, rows) in stored_names(sparsity, graph.names()).items():
        if graph.is_quantised(initialiser):
            matrix = graph.blocks(initialiser).distances()
        else:
            matrix = graph.tensor(initialiser).T
        check_pattern(name, matrix[rows], sparsity.pattern)
    return len(sparsity.shapes)


def stored_names(sparsity: SparsityRecord, stored: set[str]) -> dict[str, tuple[str, slice]]:
    """Where a graph keeps each recorded tensor: the stored matrix, and its rows (outputs) in it.

    `stored` are names such as `model.layers.0.attn.qkv_proj.MatMul.weight`.
    """
    family = family_of(sparsity.model_type)
    joined = tuple(map(family.module, "qkv"))
    found = {}
    for name in sparsity.shapes:
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
        found[name] = (fused, _rows_of(sparsity, f"{family.layers}.{index}.", joined, part))
    return found


def _rows_of(sparsity: SparsityRecord, prefix: str, joined: tuple[str, ...], part: str) -> slice:
    """A part's rows among joined ones, counted from the end where a part before it is dense."""
    sizes = [sparsity.shapes.get(f"{prefix}{name}.weight", (None, 0))[0] for name in joined]
    position = joined.index(part)
    before, after = sizes[:position], sizes[position + 1 :]
    size = sparsity.shapes[f"{prefix}{part}.weight"][0]
    if None not in before:
        start = sum(filter(None, before))
        return slice(start, start + size)
    if None not in after:
        end = -sum(filter(None, after)) or None
        return slice((end or 0) - size, end)
    # k alone between parts that are dense: v is as large as k.
    return slice(-2 * size, -size)
