"""sha256 of tensors as a stage holds them in memory, recorded before anything is written.

A writer that mixes up names, cuts a block short or repeats a shard leaves files whose own sums are
right; what the stage held in memory is the second source that says otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from compressor.core.errors import VerificationError
from compressor.core.json_files import read_json_mapping, refuse_other_version
from compressor.models.checkpoint import TensorSpec, row_blocks
from compressor.runs.artifact import write_json

DIGESTS_FILE = "tensors.json"
SCHEMA = "compress-export/tensors/1"


def tensor_digest(tensor: torch.Tensor) -> str:
    """sha256 over dtype, shape and the bytes of a tensor."""
    return _digest(tensor.dtype, tensor.shape, row_blocks(tensor.detach()))


def spec_digest(spec: TensorSpec) -> str:
    """`tensor_digest` of a tensor that is to be written."""
    return _digest(spec.dtype, spec.shape, spec.blocks())


def _digest(dtype: torch.dtype, shape: tuple[int, ...], blocks: Iterable[torch.Tensor]) -> str:
    digest = hashlib.sha256(f"{dtype} {list(shape)}".encode())
    for block in blocks:
        digest.update(block.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_digests(directory: Path, digests: Mapping[str, str]) -> None:
    """Write `tensors.json`."""
    write_json(directory / DIGESTS_FILE, {"schema": SCHEMA, "tensors": dict(digests)})


def read_digests(directory: Path) -> dict[str, str]:
    """The digests that a stage recorded, by tensor name; a VerificationError where the file is not ours."""
    file = directory / DIGESTS_FILE
    record = read_json_mapping(file, what="the record of the tensors in memory")
    refuse_other_version(record, SCHEMA, what="the record of the tensors in memory", where=file)
    tensors = record.get("tensors")
    if record.get("schema") != SCHEMA or not isinstance(tensors, dict):
        what = "this tool did not write this record of tensors"
        raise VerificationError(what, where=str(file), expected=SCHEMA)
    return {name: str(digest) for name, digest in tensors.items()}
