"""Standard graphs as `evaluate` measures them: opened from their directory alone, on the CPU."""

from __future__ import annotations

from pathlib import Path

from compressor.evaluation.executed import ExecutedGraph
from exporters.onnx.cache import standard_cache
from exporters.onnx.executed import executable, guarded
from exporters.onnx_standard.execute import WIDENED_NOTE, StandardGraph

_NOTES = {
    "bf16": (WIDENED_NOTE,),
    "fp8": ("QuantizeLinear and DequantizeLinear computed as they are written, no pair fused",),
}


def open_standard_graph(directory: Path, precision: str) -> ExecutedGraph:
    """A graph of standard operators; the notes say where the runtime is kept from its own way.

    Raises:
        UnsupportedError: where this CPU does not execute it.
        VerificationError: when it is no such graph.
    """
    with executable(directory, precision):
        graph = StandardGraph(directory, standard_cache(directory))
    return ExecutedGraph(logits=guarded(graph.logits, directory, precision), notes=_NOTES.get(precision, ()))
