"""Running a built graph with onnxruntime itself: logits of all positions, which GenAI does not give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from compressor.core.errors import VerificationError
from compressor.core.resource_errors import as_resource_error
from exporters.onnx.builder import GRAPH_FILE, load_graph
from exporters.onnx.cache import CacheDims

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_ONLY_FATAL = 4
_FLOAT32_INPUTS = 1  # of MatMulNBits' accuracy_level
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_PAST, _PRESENT = "past_key_values.", "present."

Cache = dict[str, npt.NDArray[Any]]


class GraphFailureError(VerificationError):
    """onnxruntime loaded or ran the graph and failed."""


class NotExecutableError(Exception):
    """This CPU has no kernel for an operator of the graph."""


class OnnxModel:
    """A graph with a KV cache, open on the CPU."""

    def __init__(self, directory: Path, dims: CacheDims, *, exact_activations: bool = False) -> None:
        """Open `model.onnx` in `directory`.

        With `exact_activations` quantised layers compute with float32 inputs, whatever the graph allows: its
        kernels may round them to 8 bits.

        Raises:
            VerificationError: when the graph cannot be opened, or has not the inputs and outputs of
                a decoder with a KV cache of these dimensions.
            NotExecutableError: when this CPU lacks a kernel for it.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ONLY_FATAL
        graph: str | bytes = str(directory / GRAPH_FILE)
        if exact_activations:
            graph = _with_exact_activations(directory)
            options.add_session_config_entry(_DATA_FOLDER, str(directory))
        self._session = attempt(
            lambda: onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        )
        self._dims = dims
        self._inputs = {entry.name: entry.type for entry in self._session.get_inputs()}
        self._outputs = [entry.name for entry in self._session.get_outputs()]
        _check_cached(set(self._inputs), set(self._outputs), dims.num_hidden_layers)

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Float32 logits of every position, `[num_positions, vocab_size]`."""
        logits, _ = self._step(token_ids, self._empty_cache(), outputs=["logits"])
        return logits

    def logits_in_two_steps(self, token_ids: Sequence[int], *, first: int) -> torch.Tensor:
        """The same logits, those after the `first` tokens computed from the KV cache."""
        outputs = [name for name in self._outputs if name == "logits" or name.startswith(_PRESENT)]
        before, cache = self._step(token_ids[:first], self._empty_cache(), outputs=outputs)
        after, _ = self._step(token_ids[first:], cache, outputs=["logits"])
        return torch.cat([before, after])

    def _empty_cache(self) -> Cache:
        shape = (1, self._dims.num_key_value_heads, 0, self._dims.head_dim)
        return {
            name: np.zeros(shape, _DTYPES[kind])
            for name, kind in self._inputs.items()
            if name.startswith(_PAST)
        }

    def _step(
        self, token_ids: Sequence[int], cache: Cache, *, outputs: list[str]
    ) -> tuple[torch.Tensor, Cache]:
        """Feed tokens behind a cache; returns their logits and the `outputs`' cache, renamed for input."""
        num_past = next(iter(cache.values())).shape[2]
        total = num_past + len(token_ids)
        feed = {
            "input_ids": np.asarray([token_ids], dtype=np.int64),
            "attention_mask": np.ones((1, total), dtype=np.int64),
            "position_ids": np.arange(num_past, total, dtype=np.int64)[None],
            **cache,
        }
        fed = {name: value for name, value in feed.items() if name in self._inputs}
        found = dict(zip(outputs, attempt(lambda: self._session.run(outputs, fed)), strict=True))
        logits = torch.from_numpy(found.pop("logits")[0].astype(np.float32, copy=False))
        return logits, {_PAST + name.removeprefix(_PRESENT): value for name, value in found.items()}


def _with_exact_activations(directory: Path) -> bytes:
    """The graph, without its data, allowing quantised layers no less than float32 inputs."""
    model = load_graph(directory)
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = _FLOAT32_INPUTS
    return bytes(model.SerializeToString())


def _check_cached(inputs: set[str], outputs: set[str], num_layers: int) -> None:
    halves = [f"{layer}.{half}" for layer in range(num_layers) for half in ("key", "value")]
    missing = {"input_ids", *(_PAST + half for half in halves)} - inputs
    missing |= {"logits", *(_PRESENT + half for half in halves)} - outputs
    if missing:
        raise VerificationError(
            "the graph lacks an input or output of a decoder with a KV cache", where=min(missing)
        )
    known = {"input_ids", "attention_mask", "position_ids"}
    if unknown := {name for name in inputs if not name.startswith(_PAST)} - known:
        raise VerificationError("the graph has an input that this tool does not know", where=min(unknown))


def attempt(work: Callable[[], Any]) -> Any:
    """Run onnxruntime, its own exceptions turned into ours."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    refused = (state.Fail, state.InvalidGraph, state.InvalidProtobuf, state.InvalidArgument, state.NoSuchFile)
    try:
        return work()
    except state.NotImplemented as error:
        raise NotExecutableError(str(error)) from error
    except (*refused, state.RuntimeException) as error:
        if resource := as_resource_error(error):
            raise resource from error  # a want of memory or disk says nothing about the graph
        did = "failed in" if isinstance(error, state.RuntimeException) else "cannot run"
        raise GraphFailureError(f"onnxruntime {did} the graph", where=GRAPH_FILE, found=error) from error
