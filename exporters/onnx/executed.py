"""Graphs for ONNX Runtime GenAI as `evaluate` measures them: opened from their directory, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from compressor.core.errors import UnsupportedError
from compressor.evaluation.executed import ExecutedGraph, Logits
from exporters.onnx.cache import genai_cache
from exporters.onnx.runtime import GraphFailureError, NotExecutableError, OnnxModel


def open_genai_graph(directory: Path, precision: str) -> ExecutedGraph:
    """A graph for ONNX Runtime GenAI, in the arithmetic that the runtime chooses for it.

    Raises:
        UnsupportedError: where this CPU does not execute it.
        VerificationError: when it is no such graph.
    """
    stated = genai_cache(directory)
    with executable(directory, precision):
        graph = OnnxModel(directory, stated)
    return ExecutedGraph(
        logits=guarded(graph.logits, directory, precision), max_positions=stated.context_length
    )


def guarded(logits: Logits, directory: Path, precision: str) -> Logits:
    """The same function, whose failures say that this CPU does not execute the graph."""

    def attempted(token_ids: Sequence[int]) -> torch.Tensor:
        with executable(directory, precision):
            return logits(token_ids)

    return attempted


@contextmanager
def executable(directory: Path, precision: str) -> Iterator[None]:
    """Refuse what this CPU lacks kernels for: some float16 graphs load, and fail when they run."""
    try:
        yield
    except (NotExecutableError, GraphFailureError) as error:
        if isinstance(error, GraphFailureError) and precision != "fp16":
            raise
        raise UnsupportedError(
            f"onnxruntime does not execute this {precision} graph on this CPU",
            where=str(directory),
            expected="a CPU kernel for every operator",
            found=error,
            hint="leave it out, or export the model with another --precision, or as --format onnx-standard",
        ) from error
