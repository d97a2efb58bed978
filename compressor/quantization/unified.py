"""A unified FP8 checkpoint written again, with other weights and maxima in the same places."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from compressor.calibration.rewrite import read_kept
from compressor.models.checkpoint import (
    INDEX_FILE,
    CheckpointReader,
    TensorSpec,
    row_blocks,
    write_checkpoint,
)
from compressor.models.dims import dims_of_config
from compressor.quantization.amax import recorded
from compressor.quantization.coverage import (
    INPUT_SCALE,
    K_SCALE,
    V_SCALE,
    WEIGHT_SCALE,
    attention_modules,
    quantised_linears,
)
from compressor.quantization.e4m3 import scale_of, to_e4m3


def maxima_of_scales(config: Mapping[str, object]) -> dict[str, str]:
    """The maximum that every scale of a checkpoint belongs to, by names."""
    dims = dims_of_config(config)
    found = {}
    for name in quantised_linears(config):
        found[name + WEIGHT_SCALE], found[name + INPUT_SCALE] = f"{name}.weight_amax", f"{name}.input_amax"
    for index, name in enumerate(attention_modules(config)):
        prefix = f"{dims.family.layers}.{index}."
        found[f"{prefix}{dims.family.module('k')}{K_SCALE}"] = f"{name}.k_amax"
        found[f"{prefix}{dims.family.module('v')}{V_SCALE}"] = f"{name}.v_amax"
    return found


def rewrite_unified(
    source: Path,
    out_dir: Path,
    config: Mapping[str, object],
    *,
    changed: Mapping[str, Path],
    amax: Mapping[str, torch.Tensor],
) -> None:
    """Write a unified checkpoint like `source`: its tensors, records and tokenizer, in its order.

    Args:
        source: A unified checkpoint.
        out_dir: Does not exist yet.
        config: Of the model.
        changed: Full names of replaced 16-bit weights, and the file that holds each; they are rounded once.
        amax: Every maximum: all scales follow from them.
    """
    shutil.copytree(source, out_dir, ignore=shutil.ignore_patterns("*.safetensors", INDEX_FILE))
    maxima = maxima_of_scales(config)
    with CheckpointReader(source) as reader:

        def blocks(name: str) -> Iterator[torch.Tensor]:
            if name in maxima:
                stored = reader.tensor(name)
                yield scale_of(recorded(amax, maxima[name])).reshape(stored.shape).to(stored.dtype)
            elif name in changed:
                scale = scale_of(recorded(amax, f"{name}_amax"))
                yield from (to_e4m3(block, scale) for block in row_blocks(read_kept(changed[name], name)))
            else:
                yield from row_blocks(reader.tensor(name))

        def spec(name: str) -> TensorSpec:
            dtype = reader.tensor(name).dtype
            return TensorSpec(name=name, shape=reader.shape(name), dtype=dtype, blocks=lambda: blocks(name))

        write_checkpoint(out_dir, [spec(name) for name in reader])
