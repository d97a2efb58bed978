"""Whether a directory's tensors, in whatever format, keep the sparsity that its record states."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from compressor.models.sparse.record import SparsityRecord, read_sparsity
from exporters.protocol import Exporter


def check_sparsity(
    exporter: Exporter, directory: Path, *, sparsity: SparsityRecord | None = None
) -> dict[str, JsonValue]:
    """Check every recorded tensor as it was written.

    Args:
        exporter: Of the directory's format.
        directory: A checkpoint, FP8 or not, a graph, or a TensorRT-LLM export.
        sparsity: What to hold it to; by default its own.

    Returns:
        `sparsity` with the pattern and how many tensors keep it; nothing for a dense model.

    Raises:
        VerificationError: naming the first tensor with too many non-zeros.
    """
    sparsity = sparsity or read_sparsity(directory)
    if sparsity is None:
        return {}
    num_tensors = exporter.check_sparsity(directory, sparsity)
    return {"sparsity": {"pattern": str(sparsity.pattern), "num_tensors": num_tensors}}
