"""A graph's stored weights against the student's, tensor by tensor.

The builder stores every linear layer transposed for MatMul, joins q, k and v when it uses fused
attention, names the final norm as a layer's, and stores a tied embedding once, as the LM head.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compressor.core.errors import VerificationError
from compressor.models.checkpoint import CheckpointReader
from compressor.models.dims import Dims
from exporters.onnx.builder import load_graph

# Rope's cosine and sine, which are no weights.
TABLES = ("cos_cache", "sin_cache")


@dataclass(frozen=True, kw_only=True)
class StoredWeight:
    """An initialiser of the graph: the student's tensors, joined on dimension 0, transposed or not."""

    initialiser: str
    tensors: tuple[str, ...]
    transposed: bool


def stored_weights(dims: Dims, initialisers: set[str]) -> list[StoredWeight]:
    """Where the graph keeps each of the student's weights; its names tell whether q, k and v are joined."""
    family = dims.family
    found: list[StoredWeight] = []
    for index in range(dims.num_hidden_layers):
        ours, theirs = f"{family.layers}.{index}", f"model.layers.{index}"

        def linear(name: str, *parts: str, ours: str = ours, theirs: str = theirs) -> StoredWeight:
            tensors = tuple(f"{ours}.{part}.weight" for part in parts)
            return StoredWeight(
                initialiser=f"{theirs}.{name}.MatMul.weight", tensors=tensors, transposed=True
            )

        query_key_value = [family.module(part) for part in "qkv"]
        qkv = linear("attn.qkv_proj", *query_key_value)
        separate = [linear(f"attn.{part.rpartition('.')[2]}", part) for part in query_key_value]
        first = len(found)
        found += [qkv] if qkv.initialiser in initialisers else separate
        if family.qkv_has_bias:
            found += [_bias_of(stored) for stored in found[first:]]
        for part in ("q_norm", "k_norm") if family.has_head_norms else ():
            name = f"{theirs}.attn.{part}.layernorm.weight"
            found.append(_plain(name, f"{ours}.{family.module(part)}.weight"))
        found.append(linear("attn.o_proj", family.module("o")))
        found += [linear(part, part) for part in map(family.module, ("down", "gate", "up"))]
        norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
        for name, part in norms.items():
            found.append(_plain(f"{theirs}.{name}.weight", f"{ours}.{family.module(part)}.weight"))
    last = dims.num_hidden_layers
    found.append(_plain(f"model.layers.{last}.final_norm_layernorm.weight", f"{family.final_norm}.weight"))
    embedding = f"{family.embedding}.weight"
    head = embedding if dims.tie_word_embeddings else f"{family.lm_head}.weight"
    found.append(StoredWeight(initialiser="lm_head.MatMul.weight", tensors=(head,), transposed=True))
    if not dims.tie_word_embeddings or "model.embed_tokens.weight" in initialisers:
        found.append(_plain("model.embed_tokens.weight", embedding))
    return found


def compare_weights(directory: Path, student: Path, dims: Dims, *, dtype: torch.dtype) -> int:
    """Check that the graph stores exactly the student's weights, cast to `dtype`; returns their number.

    An initialiser that is missing, unknown or different is a VerificationError, and so is an overflow of the
    cast.
    """
    graph = StoredGraph(directory)
    wanted = stored_weights(dims, graph.floating())
    refuse_unknown(graph.floating() - set(TABLES), wanted)
    with CheckpointReader(student) as reader:
        for stored in wanted:
            expected = torch.cat([cast_tensor(reader, name, dtype) for name in stored.tensors])
            found = graph.tensor(stored.initialiser)
            if found.dtype != dtype or not torch.equal(expected.T if stored.transposed else expected, found):
                raise VerificationError(
                    "the graph's weight is not the student's",
                    where=stored.initialiser,
                    expected=f"{', '.join(stored.tensors)} as {dtype} {list(expected.shape)}",
                    found=f"other values, {found.dtype} {list(found.shape)}",
                )
    return len(wanted)


def refuse_unknown(names: set[str], wanted: list[StoredWeight]) -> None:
    """Refuse stored weights that are none of those wanted."""
    if unknown := names - {stored.initialiser for stored in wanted}:
        raise VerificationError("the graph stores a weight that the student lacks", where=min(unknown))


def read_initialiser(entry: Any, directory: Path) -> torch.Tensor:
    """An initialiser's values, from the graph or from the data beside it, which must be whole."""
    from onnx import checker, numpy_helper

    try:
        array: Any = numpy_helper.to_array(entry, base_dir=str(directory))
    except (OSError, ValueError, checker.ValidationError) as error:
        raise VerificationError(
            "the graph's weights are missing or truncated", where=f"{directory}: {entry.name}", found=error
        ) from error
    return torch.from_numpy(np.array(array))


class StoredGraph:
    """A graph and its initialisers, read one at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.graph = load_graph(directory).graph
        self.initialisers = {entry.name: entry for entry in self.graph.initializer}

    def floating(self) -> set[str]:
        """Names of the initialisers that hold floating-point numbers."""
        from onnx import TensorProto

        kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
        return {name for name, entry in self.initialisers.items() if entry.data_type in kinds}

    def tensor(self, name: str) -> torch.Tensor:
        """One initialiser as it is stored; VerificationError when the graph lacks it."""
        if name not in self.initialisers:
            raise VerificationError("the graph lacks a weight", where=name)
        return read_initialiser(self.initialisers[name], self._directory)


def _bias_of(linear: StoredWeight) -> StoredWeight:
    """The bias that a linear layer's own node adds."""
    return StoredWeight(
        initialiser=linear.initialiser.replace(".MatMul.weight", ".Add.bias"),
        tensors=tuple(name.removesuffix("weight") + "bias" for name in linear.tensors),
        transposed=False,
    )


def _plain(initialiser: str, tensor: str) -> StoredWeight:
    return StoredWeight(initialiser=initialiser, tensors=(tensor,), transposed=False)


def cast_tensor(reader: CheckpointReader, name: str, dtype: torch.dtype) -> torch.Tensor:
    """A checkpoint's tensor in another dtype; VerificationError where it overflows."""
    cast = reader.tensor(name).to(dtype)
    if not torch.isfinite(cast).all():
        raise VerificationError("a weight overflows the export's dtype", where=name, expected=dtype)
    return cast
