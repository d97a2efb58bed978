"""Checkpoints of large models' shapes, with few layers and random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from compressor.models.checkpoint import TensorSpec, read_config, write_checkpoint
from compressor.models.config.portable import write_config
from compressor.models.dims import dims_of_config
from compressor.models.presets import PRESETS
from compressor.models.shapes import expected_shapes
from compressor.pruning.importance import random_importance
from compressor.pruning.plan import make_plan
from compressor.pruning.slicing import slice_checkpoint
from compressor.runs.artifact import sync_tree

SLICED_LAYERS = 4


def write_8b_tensors(directory: Path, num_layers: int = SLICED_LAYERS) -> Path:
    """Some layers of Llama-3.1-8B's shape, random weights."""
    directory.mkdir()
    dims = PRESETS["llama3.1-8b"].dims.with_shape(num_hidden_layers=num_layers)
    config = {name: getattr(dims, name) for name in dims.__dataclass_fields__}
    rope = {"rope_theta": 5e5, "max_position_embeddings": 131_072}
    others = {"dtype": "bfloat16", "hidden_act": "silu", "rms_norm_eps": 1e-5}
    write_config(directory, {**config, **rope, **others})
    shapes = expected_shapes(dims)
    write_checkpoint(directory, [_random_spec(name, shape) for name, shape in shapes.items()])
    return directory


def _random_spec(name: str, shape: tuple[int, ...]) -> TensorSpec:
    def blocks() -> Any:
        for start in range(0, shape[0], 4096):
            yield torch.randn(min(4096, shape[0] - start), *shape[1:], dtype=torch.bfloat16)

    return TensorSpec(name=name, shape=shape, dtype=torch.bfloat16, blocks=blocks)


def cut_8b_tensors(source: Path, out_dir: Path) -> None:
    """The same layers in the shape of 4B-Width, whole on disk."""
    dims = dims_of_config(read_config(source))
    target = PRESETS["4b-width"].dims.with_shape(num_hidden_layers=dims.num_hidden_layers)
    plan = make_plan(dims, target, random_importance(dims, seed=0), importance="random")
    out_dir.mkdir()
    plan.write(out_dir)
    slice_checkpoint(source, plan, out_dir)
    sync_tree(out_dir)
