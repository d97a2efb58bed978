"""Whether a directory's tensors, in whatever format, keep the sparsity that it promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.core.errors import VerificationError
from compressor.models.checkpoint import CONFIG_FILE
from compressor.models.sparse.pattern import check_pattern
from compressor.models.sparse.record import (
    SPARSITY_FILE,
    Promise,
    check_checkpoint_sparsity,
    read_promise,
)
from exporters.onnx.builder import GRAPH_FILE
from exporters.onnx.sparsity import check_graph_sparsity
from exporters.tensorrt_llm.exporter import CHECKPOINT
from exporters.tensorrt_llm.reader import TrtLlmReader


def check_sparsity(directory: Path, *, promise: Promise | None = None) -> dict[str, Any]:
    """Check every promised tensor as it was written.

    Args:
        directory: A checkpoint, FP8 or not, a graph, or a TensorRT-LLM export.
        promise: What to hold it to; by default its own.

    Returns:
        `sparsity` with the pattern and how many tensors keep it; nothing where nothing is promised.

    Raises:
        VerificationError: naming the first tensor with too many non-zeros, or a format that cannot be
            checked.
    """
    promise = promise or read_promise(directory)
    if promise is None:
        return {}
    if (directory / GRAPH_FILE).is_file():
        num_tensors = check_graph_sparsity(directory, promise)
    elif (directory / CHECKPOINT / CONFIG_FILE).is_file():
        num_tensors = _check_ranks(directory / CHECKPOINT, promise)
    elif (directory / CONFIG_FILE).is_file():
        num_tensors = check_checkpoint_sparsity(directory, promise)
    else:
        raise VerificationError(
            "this format promises sparsity that cannot be checked", where=str(directory / SPARSITY_FILE)
        )
    return {"sparsity": {"pattern": str(promise.pattern), "num_tensors": num_tensors}}


def _check_ranks(directory: Path, promise: Promise) -> int:
    """Check every promised tensor, and every rank's own part of it; returns the number of tensors.

    A kernel reads groups along the columns of its rank's matrix: a cut through columns that is no
    multiple of the group moves every group behind it, however sparse the whole is.
    """
    with TrtLlmReader(directory) as reader:
        for name in promise.shapes:
            check_pattern(name, reader.stored(name), promise.pattern)
            for number, part in enumerate(reader.own_columns(name)):
                check_pattern(f"{name}, rank {number}", part, promise.pattern)
    return len(promise.shapes)
