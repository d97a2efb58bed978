"""Which weights of a directory are sparse: `sparsity.json`, which travels with them into every export.

Beside it, a sparsified checkpoint that may be trained further holds `masks.safetensors`: one bit per
weight, the exact mask even where a kept weight happens to be zero.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from compressor.core.errors import UsageError, VerificationError
from compressor.core.json_files import read_json_mapping, refuse_other_version
from compressor.models.checkpoint import CheckpointReader
from compressor.models.sparse.masks import check_pattern, pack_mask, unpack_mask
from compressor.models.sparse.pattern import Pattern, parse_pattern
from compressor.runs.artifact import write_json

SPARSITY_FILE = "sparsity.json"
MASKS_FILE = "masks.safetensors"
_SCHEMA = "compress-export/sparsity/1"


@dataclass(frozen=True, kw_only=True)
class SparsityRecord:
    """Which tensors are sparse, and how.

    Attributes:
        model_type: Of the checkpoint, to find its tensors in other formats.
        shapes: Of the sparse tensors, by full name as in a Hugging Face checkpoint.
    """

    pattern: Pattern
    model_type: str
    shapes: dict[str, tuple[int, int]]

    def write(self, directory: Path) -> None:
        """Write `sparsity.json`."""
        record = {
            "schema": _SCHEMA,
            "pattern": str(self.pattern),
            "model_type": self.model_type,
            "tensors": {name: list(shape) for name, shape in self.shapes.items()},
        }
        write_json(directory / SPARSITY_FILE, record)


def read_sparsity(directory: Path) -> SparsityRecord | None:
    """The directory's record; None for a dense model, a VerificationError for a corrupt one."""
    file = directory / SPARSITY_FILE
    if not file.is_file():
        return None
    what, again = "the sparsity record", "compress-export sparsify ... --overwrite writes it in this version"
    record = read_json_mapping(file, what=what)
    refuse_other_version(record, _SCHEMA, what=what, where=file, hint=again)
    try:
        return SparsityRecord(
            pattern=parse_pattern(record["pattern"]),
            model_type=record["model_type"],
            shapes={name: (int(rows), int(columns)) for name, (rows, columns) in record["tensors"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise VerificationError("the sparsity record is corrupt", where=str(file), found=error) from error


def carry_sparsity(source: Path, out_dir: Path) -> None:
    """Copy the record, if there is one, to a directory that holds the same weights."""
    if (source / SPARSITY_FILE).is_file():
        shutil.copyfile(source / SPARSITY_FILE, out_dir / SPARSITY_FILE)


def check_checkpoint_sparsity(directory: Path, sparsity: SparsityRecord) -> int:
    """Check every recorded tensor of a checkpoint, 16-bit or FP8; returns their number."""
    with CheckpointReader(directory) as reader:
        for name in sparsity.shapes:
            check_pattern(name, reader.tensor(name), sparsity.pattern)
    return len(sparsity.shapes)


def write_masks(path: Path, masks: Mapping[str, torch.Tensor]) -> None:
    """Write bool masks packed, one bit per weight."""
    save_file({name: pack_mask(mask).cpu().contiguous() for name, mask in masks.items()}, path)


def read_masks(path: Path, shapes: Mapping[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Read the masks of these tensors: a UsageError where there are none, none may differ from the shapes."""
    if not path.is_file():
        raise UsageError(
            "this checkpoint has no masks", where=str(path), hint="make them with `compress-export sparsify`"
        )
    try:
        packed = load_file(path)
    except (SafetensorError, OSError) as error:
        raise VerificationError("the masks cannot be read", where=str(path), found=error) from error
    masks = {}
    for name, shape in shapes.items():
        expected = (shape[0], -(-shape[1] // 8))
        if name not in packed or tuple(packed[name].shape) != expected:
            found = list(packed[name].shape) if name in packed else "nothing"
            raise VerificationError("a mask does not fit", where=name, expected=list(expected), found=found)
        masks[name] = unpack_mask(packed[name], shape[1])
    return masks
