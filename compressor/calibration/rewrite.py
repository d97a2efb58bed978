"""A checkpoint with some of its weights replaced, which wait in files of a scratch directory until then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from compressor.models.checkpoint import (
    CheckpointReader,
    TensorSpec,
    read_config,
    row_blocks,
    write_checkpoint,
)
from compressor.models.config.portable import write_config
from compressor.models.tokenizer_files import copy_tokenizer


def keep_weights(replaced: Mapping[str, torch.Tensor], prefix: str, path: Path) -> dict[str, Path]:
    """Write a layer's new weights to a file; returns their full names and the file.

    Args:
        replaced: Weights by their modules' names relative to the layer.
        prefix: Of the layer, with a dot.
        path: The file.
    """
    tensors = {f"{prefix}{name}.weight": weight.cpu().contiguous() for name, weight in replaced.items()}
    save_file(tensors, path)
    return dict.fromkeys(tensors, path)


def write_rewritten(
    source: Path, out_dir: Path, changed: Mapping[str, Path], dtype: torch.dtype | None
) -> None:
    """Write a checkpoint in its source's order, with config and tokenizer, one block of rows at a time.

    Args:
        source: The checkpoint.
        out_dir: An existing directory.
        changed: Full names of replaced weights, and the file that holds each.
        dtype: Of all weights; None: each keeps its own.
    """
    with CheckpointReader(source) as reader:

        def spec(name: str) -> TensorSpec:
            own = dtype or reader.tensor(name).dtype

            def blocks() -> Any:
                tensor = read_kept(changed[name], name) if name in changed else reader.tensor(name)
                return (block.to(own) for block in row_blocks(tensor))

            return TensorSpec(name=name, shape=reader.shape(name), dtype=own, blocks=blocks)

        write_checkpoint(out_dir, [spec(name) for name in reader])
    named = {} if dtype is None else {"dtype": str(dtype).removeprefix("torch.")}
    write_config(out_dir, {**read_config(source), **named})
    copy_tokenizer(source, out_dir)


def read_kept(path: Path, name: str) -> torch.Tensor:
    """One tensor of a file."""
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor
