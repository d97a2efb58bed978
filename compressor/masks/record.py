"""The file of final masks: what was folded into the weights of a pruned checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from compressor.core.errors import VerificationError
from compressor.masks.applied import MaskValues

FINAL_MASKS_FILE = "learned_masks.safetensors"


def write_final_masks(directory: Path, values: MaskValues) -> None:
    """Write every mask in float32, 0 for what was removed, indexed as in the source model."""
    tensors = {name: tensor.float().contiguous() for name, tensor in values.named().items()}
    save_file(tensors, directory / FINAL_MASKS_FILE)


def read_final_masks(directory: Path) -> dict[str, torch.Tensor]:
    """The masks by axis, those of the layers under `layers`.

    Raises:
        VerificationError: when the file is missing or corrupt.
    """
    file = directory / FINAL_MASKS_FILE
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise VerificationError("the learned masks cannot be read", where=str(file), found=error) from error
