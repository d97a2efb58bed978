"""Whether a directory's tensors, in whatever format, keep the sparsity that it promises."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from compressor.models.sparse.record import Promise, read_promise
from exporters.protocol import Exporter


def check_sparsity(
    exporter: Exporter, directory: Path, *, promise: Promise | None = None
) -> dict[str, JsonValue]:
    """Check every promised tensor as it was written.

    Args:
        exporter: Of the directory's format.
        directory: A checkpoint, FP8 or not, a graph, or a TensorRT-LLM export.
        promise: What to hold it to; by default its own.

    Returns:
        `sparsity` with the pattern and how many tensors keep it; nothing where nothing is promised.

    Raises:
        VerificationError: naming the first tensor with too many non-zeros.
    """
    promise = promise or read_promise(directory)
    if promise is None:
        return {}
    num_tensors = exporter.check_sparsity(directory, promise)
    return {"sparsity": {"pattern": str(promise.pattern), "num_tensors": num_tensors}}
