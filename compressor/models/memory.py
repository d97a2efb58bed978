"""Whether a checkpoint's weights can be in memory at all, told from their headers before they are loaded.

On a CPU, weights that are loaded in the dtype in which they are stored stay mapped from their files, which
needs no memory of its own; those that are converted, and all that go to a GPU, do.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from compressor.core.hardware import require_memory
from compressor.models.checkpoint import DTYPE_NAMES, CheckpointReader, read_config
from compressor.models.dims import dims_of_config, weight_bytes
from compressor.models.shapes import expected_shapes


def require_model_memory(*checkpoints: tuple[Path, str], device: str) -> None:
    """Refuse (ResourceError) a checkpoint whose weights alone are more than all memory, swap included.

    Activations and everything else come on top, so this refuses nothing that could run. Checkpoints, each
    with the dtype that it will be loaded in, need not be in memory together.
    """
    for directory, dtype in checkpoints:
        require_memory(
            memory_of_weights(directory, dtype=dtype, device=device),
            device=device,
            what=f"not enough memory for the weights of {directory} in {dtype}",
            hint="a smaller model, more memory, or swap",
        )


def require_gradient_memory(checkpoint: Path, *, device: str) -> None:
    """Refuse (ResourceError) a checkpoint of which float32 weights and their gradients are more than that."""
    gradients = weight_bytes(dims_of_config(read_config(checkpoint)), "fp32")
    require_memory(
        memory_of_weights(checkpoint, dtype="float32", device=device) + gradients,
        device=device,
        what=f"not enough memory for the weights and gradients of {checkpoint} in float32",
        hint="a smaller model, more memory, or another --importance",
    )


def memory_of_weights(directory: Path, *, dtype: str, device: str) -> int:
    """Bytes that the weights of a checkpoint certainly take once they are loaded."""
    wanted: torch.dtype = getattr(torch, dtype)
    with CheckpointReader(directory) as reader:
        return sum(
            math.prod(shape) * wanted.itemsize
            for name, shape in expected_shapes(dims_of_config(read_config(directory))).items()
            if name in reader and (device != "cpu" or reader.dtype(name) != DTYPE_NAMES[wanted])
        )
