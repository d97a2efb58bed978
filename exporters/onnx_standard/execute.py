"""Executing a standard graph on the CPU: in any number of steps, in batches, layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from exporters.onnx.builder import load_graph
from exporters.onnx.cache import CacheDims
from exporters.onnx.runtime import attempt
from exporters.onnx_standard.decoder import HALVES, LOGITS, PAST, PRESENT

Array = npt.NDArray[Any]
_ONLY_FATAL = 4
WIDENED_NOTE = "executed with its 16-bit numbers widened to float32: no CPU kernels of bfloat16"
_NO_FUSED_PAIRS = "session.disable_quant_qdq"
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True, kw_only=True)
class LayerValues:
    """What a linear layer read, before rounding, and what it gave; float32, `[tokens, width]`."""

    read: torch.Tensor
    gave: torch.Tensor


class StandardGraph:
    """A graph open on the CPU, for its logits or, with `linears`, for the values of these layers.

    A `widened` graph computes in float32 with its own weights, of which it holds each exactly: what then
    differs from another float32 program is no rounding. A bfloat16 graph is always widened, because ONNX
    Runtime's CPU has no kernels of that type.
    """

    def __init__(
        self,
        directory: Path,
        dims: CacheDims,
        *,
        widened: bool = False,
        unrounded: bool = False,
        linears: Sequence[str] = (),
    ) -> None:
        """Open `model.onnx`; `unrounded` leaves the rounding of activations to FP8 out.

        Raises:
            VerificationError: when onnxruntime refuses it.
            NotExecutableError: when this CPU lacks a kernel for it.
        """
        import onnx
        import onnxruntime

        model = load_graph(directory)
        narrow = {onnx.TensorProto.BFLOAT16, *([onnx.TensorProto.FLOAT16] if widened else [])}
        _widen_(model, narrow)
        if unrounded:
            _connect_around_pairs_(model.graph)
        self._layers = {name: _ends(model.graph, name) for name in linears}
        _expose_(model.graph, [value for ends in self._layers.values() for value in ends])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ONLY_FATAL
        options.add_session_config_entry(_DATA_FOLDER, str(directory))
        # It would fuse float32 pairs of FP8 into an operator that has 8-bit integers only.
        options.add_session_config_entry(_NO_FUSED_PAIRS, "1")
        graph = model.SerializeToString()
        self._session = attempt(
            lambda: onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        )
        self._dims = dims
        kinds = {entry.name: entry.type for entry in self._session.get_inputs()}
        self._dtype = np.float32 if kinds[f"{PAST}.0.key"] == "tensor(float)" else np.float16

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Float32 logits of every position, `[num_positions, vocab_size]`."""
        return self.logits_in_steps(token_ids, [len(token_ids)])

    def logits_in_steps(self, token_ids: Sequence[int], steps: Sequence[int]) -> torch.Tensor:
        """The same logits, the tokens fed in steps of these sizes behind each other's cache."""
        cache, found, start = self._empty_cache(1), [], 0
        for size in steps:
            stop = start + size
            ids = np.asarray([token_ids[start:stop]], dtype=np.int64)
            mask, positions = np.ones((1, stop), dtype=np.int64), np.arange(start, stop, dtype=np.int64)[None]
            logits, cache = self._step(ids, mask, positions, cache)
            found.append(torch.from_numpy(logits[0]))
            start = stop
        return torch.cat(found)

    def logits_of_batch(self, sequences: Sequence[Sequence[int]], *, last: int) -> list[torch.Tensor]:
        """Logits of every position of several sequences, padded on the left and run together.

        Their `last` tokens are fed in a second step, behind the cache of the first.
        """
        longest = max(map(len, sequences))
        ids = np.zeros((len(sequences), longest), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, longest - len(sequence) :] = sequence
            mask[row, longest - len(sequence) :] = 1
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        cut, cache = longest - last, self._empty_cache(len(sequences))
        first, cache = self._step(ids[:, :cut], mask[:, :cut], positions[:, :cut], cache)
        second, _ = self._step(ids[:, cut:], mask, positions[:, cut:], cache)
        logits = np.concatenate([first, second], axis=1)
        return [torch.from_numpy(logits[row, -len(each) :].copy()) for row, each in enumerate(sequences)]

    def layer_values(self, token_ids: Sequence[int]) -> dict[str, LayerValues]:
        """What every layer named when the graph was opened read and gave."""
        names = [value for ends in self._layers.values() for value in ends]
        positions = np.arange(len(token_ids), dtype=np.int64)[None]
        ids = np.asarray([token_ids], dtype=np.int64)
        feed = self._feed(ids, np.ones_like(ids), positions, self._empty_cache(1))
        unique = list(dict.fromkeys(names))
        values = dict(zip(unique, attempt(lambda: self._session.run(unique, feed)), strict=True))
        found = {}
        for name, (read, gave) in self._layers.items():
            one, other = (torch.from_numpy(values[each][0].astype(np.float32)) for each in (read, gave))
            found[name] = LayerValues(read=one, gave=other)
        return found

    def _empty_cache(self, batch_size: int) -> dict[str, Array]:
        dims = self._dims
        empty = np.zeros((batch_size, dims.num_key_value_heads, 0, dims.head_dim), self._dtype)
        return {f"{PAST}.{i}.{half}": empty for i in range(dims.num_hidden_layers) for half in HALVES}

    def _feed(self, ids: Array, mask: Array, positions: Array, cache: dict[str, Array]) -> dict[str, Array]:
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **cache}

    def _step(
        self, ids: Array, mask: Array, positions: Array, cache: dict[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        """Logits, and the cache of the next step."""
        outputs = [LOGITS, *(name.replace(PAST, PRESENT) for name in cache)]
        feed = self._feed(ids, mask, positions, cache)
        logits, *presents = attempt(lambda: self._session.run(outputs, feed))
        return logits, dict(zip(cache, presents, strict=True))


def _widen_(model: Any, narrow: Collection[int]) -> None:
    """Let a graph compute in float32 instead of these types; what it stores in them is cast first."""
    import onnx

    wide, graph = onnx.TensorProto.FLOAT, model.graph
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in narrow:
            value.type.tensor_type.elem_type = wide
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in narrow:
                attribute.i = wide
    renamed = {
        entry.name: f"{entry.name}:float32" for entry in graph.initializer if entry.data_type in narrow
    }
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    casts = [onnx.helper.make_node("Cast", [name], [cast], to=wide) for name, cast in renamed.items()]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*casts, *nodes])


def _connect_around_pairs_(graph: Any) -> None:
    """Let whatever reads a value that was rounded to FP8 read the value itself."""
    quantised = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    around = {
        node.output[0]: quantised[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in quantised
    }
    for node in graph.node:
        node.input[:] = [around.get(name, name) for name in node.input]


def _ends(graph: Any, linear: str) -> tuple[str, str]:
    """Names of a linear layer's input and of its output.

    In FP8 the input is what QuantizeLinear reads: onnxruntime, which computes most of 16 bits in float32, may
    leave out the rounding to 16 bits before it.
    """
    nodes = {node.name: node for node in graph.node}
    product = nodes[f"{linear}/MatMul"]
    read, gave = product.input[0], nodes.get(f"{linear}/Add", product).output[0]
    if f"{linear}/QuantizeLinear" in nodes:
        read = nodes[f"{linear}/QuantizeLinear"].input[0]
    return read, gave


def _expose_(graph: Any, names: Sequence[str]) -> None:
    """Make values outputs of the graph; onnxruntime infers their types."""
    import onnx

    for name in dict.fromkeys(names):
        graph.output.append(onnx.ValueInfoProto(name=name))
