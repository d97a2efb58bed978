"""An int4 graph's weights against the student's, value by value, and the student that carries them.

`MatMulNBits` stores codes `[out, blocks, block bytes]`, two a byte, the lower half first, and one scale per
block of inputs; a code c stands for (c - zero) scale. Round to nearest leaves every weight within half a
step of its scale, except beyond the last code, which a symmetric range reaches on one side only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from compressor.core.errors import UnsupportedError, VerificationError
from compressor.models.checkpoint import CheckpointReader
from compressor.models.dims import Dims
from exporters.checks.equality import expect_equal
from exporters.onnx.weights import TABLES, StoredGraph, StoredWeight, refuse_unknown, stored_weights

_BITS, _LAST, _ZERO = 4, 15, 8
# A float32 quotient of bfloat16 weights and float32 scales, in steps.
_ROUNDING = 1e-3
# A block's largest weight is seven or eight steps from zero; further in, its scale is too wide.
_MIN_USED = 7
_WEIGHT = ".MatMul.weight"
_PARTS = ("_Q4", "_scales", "_zero_points", "_zp")


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """One stored matrix.

    `steps` are codes less their zero points, `[out, blocks, block_size]`, int16; `zeros` the zero points,
    `[out, blocks]`, int16; `scales` `[out, blocks]`, float32, negative where the block's largest weight is.
    The last of the blocks may be longer than what is left of the `num_columns` inputs.
    """

    steps: torch.Tensor
    zeros: torch.Tensor
    scales: torch.Tensor
    num_columns: int

    def values(self) -> torch.Tensor:
        """The weights that are stored, `[out, in]`, float32."""
        return (self.steps * self.scales[..., None]).flatten(1)[:, : self.num_columns]

    def distances(self) -> torch.Tensor:
        """Every weight's steps from zero, `[out, in]`, int16."""
        return self.steps.flatten(1)[:, : self.num_columns]


class Int4Graph(StoredGraph):
    """A graph whose quantised matrices go by the name they have unquantised."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        nodes = [node for node in self.graph.node if node.op_type == "MatMulNBits"]
        self._nodes = {node.input[1].partition(_WEIGHT)[0] + _WEIGHT: node for node in nodes}
        self.quantises_embedding = any(node.op_type == "GatherBlockQuantized" for node in self.graph.node)

    def names(self) -> set[str]:
        """Quantised matrices, and whatever else holds weights."""
        floats = {name for name in self.floating() if not name.endswith(_PARTS)}
        return (floats - set(TABLES)) | set(self._nodes)

    def is_quantised(self, name: str) -> bool:
        """Whether a matrix is stored as int4."""
        return name in self._nodes

    def blocks(self, name: str) -> Blocks:
        """A quantised matrix; UnsupportedError for another bit width, or inputs in another order."""
        node = self._nodes[name]
        sizes = {entry.name: entry.i for entry in node.attribute}
        extra = [entry for entry in node.input[4:] if entry]
        if sizes.get("bits", _BITS) != _BITS or extra:
            raise UnsupportedError(
                "this graph stores quantised weights in a way that verification does not read",
                where=node.name,
                expected=f"{_BITS} bits, and inputs in order",
                found=extra or sizes,
                hint="export again with a version of onnxruntime-genai that compress-export doctor names",
            )
        rows, size = sizes["N"], sizes["block_size"]
        codes = _nibbles(self.tensor(node.input[1]).reshape(rows, -1)).reshape(rows, -1, size).to(torch.int16)
        zeros = torch.full(codes.shape[:2], _ZERO, dtype=torch.int16)
        if len(node.input) > 3 and node.input[3]:  # noqa: PLR2004 - A, B, scales, zero points
            points = _nibbles(self.tensor(node.input[3]).reshape(rows, -1))
            zeros = points[:, : codes.shape[1]].to(torch.int16)
        scales = self.tensor(node.input[2]).float().reshape(rows, -1)
        return Blocks(steps=codes - zeros[..., None], zeros=zeros, scales=scales, num_columns=sizes["K"])


def check_nearest(name: str, weight: torch.Tensor, blocks: Blocks) -> None:
    """Refuse stored values that are not the nearest their block can hold, or a scale that is too wide.

    `weight` is what was quantised, `[out, in]`.
    """
    stored = blocks.distances()
    expect_equal("a quantised weight has another shape", list(weight.shape), list(stored.shape), where=name)
    size = blocks.steps.shape[-1]
    scales = blocks.scales.repeat_interleave(size, dim=1)[:, : blocks.num_columns]
    zeros = blocks.zeros.repeat_interleave(size, dim=1)[:, : blocks.num_columns]
    wanted = torch.where(scales == 0, torch.where(weight == 0, 0.0, torch.inf), weight.float() / scales)
    nearest = torch.minimum(torch.maximum(wanted, -zeros.float()), (_LAST - zeros).float())
    distance = (nearest - stored).abs()
    wrong = ~(distance <= 0.5 + _ROUNDING) | ~((wanted - stored).abs() <= 1 + _ROUNDING)
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise VerificationError(
            "an int4 weight is further than half a step from the student's",
            where=f"{name}[{row}, {column}]",
            expected=f"{weight[row, column].item():.6g}, in steps of {scales[row, column].item():.6g}",
            found=f"{(stored[row, column] * scales[row, column]).item():.6g}",
        )
    used = blocks.steps.abs().amax(-1)
    narrow = (used < _MIN_USED) & (used > 0)
    if narrow.any():
        row, block = narrow.nonzero()[0].tolist()
        raise VerificationError(
            "an int4 scale is too wide for its block",
            where=f"{name}, row {row}, block {block}",
            expected=f"a largest weight of at least {_MIN_USED} steps",
            found=int(used[row, block]),
        )


def check_int4(
    directory: Path, student: Path, dims: Dims, *, keep: Callable[[str, torch.Tensor], None] | None = None
) -> int:
    """Check every weight of a graph against the student's, one matrix in memory at a time.

    `keep` is called with what the graph computes with, by the student's names, float32, of everything that
    is quantised, the LM head apart from the embedding. Returns the number of quantised matrices; a weight
    that is missing, unknown or different is a VerificationError.
    """
    graph = Int4Graph(directory)
    wanted = stored_weights(dims, graph.names())
    refuse_unknown(graph.names(), wanted)
    num_quantised = 0
    with CheckpointReader(student) as reader:
        for stored in wanted:
            if not graph.is_quantised(stored.initialiser):
                _check_plain(graph, stored, reader)
                continue
            num_quantised += 1
            for name, weight in _check_quantised(graph, stored, reader, dims):
                if keep is not None:
                    keep(name, weight)
    return num_quantised


def _check_quantised(
    graph: Int4Graph, stored: StoredWeight, reader: CheckpointReader, dims: Dims
) -> list[tuple[str, torch.Tensor]]:
    original = [reader.tensor(name) for name in stored.tensors]
    blocks = graph.blocks(stored.initialiser)
    check_nearest(stored.initialiser, torch.cat([tensor.float() for tensor in original]), blocks)
    parts = blocks.values().split([tensor.shape[0] for tensor in original])
    if stored.initialiser != f"lm_head{_WEIGHT}":
        return list(zip(stored.tensors, parts, strict=True))
    carried = [(f"{dims.family.lm_head}.weight", parts[0])]
    if graph.quantises_embedding:
        carried.append((f"{dims.family.embedding}.weight", parts[0]))
    return carried


def _check_plain(graph: Int4Graph, stored: StoredWeight, reader: CheckpointReader) -> None:
    expected = torch.cat([reader.tensor(name).float() for name in stored.tensors])
    found = graph.tensor(stored.initialiser)
    if not torch.equal(expected.T if stored.transposed else expected, found):
        raise VerificationError(
            "the graph's weight is not the student's",
            where=stored.initialiser,
            expected=f"{', '.join(stored.tensors)}, unchanged",
            found="other values",
        )


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Two codes of every byte, the lower half first; the last dimension doubles."""
    return torch.stack((packed & 0xF, packed >> _BITS), dim=-1).flatten(-2)
