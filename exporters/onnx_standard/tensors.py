"""What a standard graph stores of a checkpoint: its tensors under their own names.

In 16 bits every tensor is the student's, cast. In FP8 the linear layers are those of the quantize stage's
unified checkpoint, byte by byte, with its scales; the rest is cast to float16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from compressor.core.errors import UsageError
from compressor.models.checkpoint import CheckpointReader, read_config
from compressor.models.dims import Dims, dims_of_config
from compressor.quantization.amax import FP8_DIRECTORY
from compressor.quantization.coverage import INPUT_SCALE, K_SCALE, V_SCALE, WEIGHT_SCALE
from compressor.quantization.e4m3 import E4M3
from compressor.quantization.reader import read_scales
from exporters.onnx.rope import rotary_of
from exporters.onnx.weights import cast_tensor
from exporters.onnx_standard.decoder import Rope
from exporters.onnx_standard.graph import StoredTensor

# By precision: what is stored, and computed with, where it is not FP8.
DTYPES: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float16}


@contextmanager
def opened_tensors(student: Path, precision: str) -> Iterator[dict[str, StoredTensor]]:
    """The tensors of a student's graph by name, readable while the context lasts.

    Raises:
        UsageError: when FP8 is asked for and `student` is no artifact of the quantize stage.
        VerificationError: for a scale of its FP8 checkpoint that is unusable.
    """
    config = read_config(student)
    dims, dtype = dims_of_config(config), DTYPES[precision]
    with ExitStack() as stack:
        reader = stack.enter_context(CheckpointReader(student))
        found = {name: _cast(reader, name, shape, dtype) for name, shape in shapes_of(dims).items()}
        if precision == "fp8":
            unified = stack.enter_context(CheckpointReader(unified_of(student)))
            found |= _fp8_tensors(unified, config, dims)
        yield found


def shapes_of(dims: Dims) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a checkpoint."""
    return {name: dims.shape_of(weight) for name, (weight, _) in dims.weights().items()}


def unified_of(student: Path) -> Path:
    """The FP8 checkpoint inside the quantize stage's artifact; a UsageError where there is none."""
    unified = student / FP8_DIRECTORY
    if not unified.is_dir():
        raise UsageError(
            "this checkpoint was not quantised",
            where=str(student),
            expected=f"{FP8_DIRECTORY}/",
            hint="run `compress-export quantize MODEL --fp8 -o DIR` and export DIR",
        )
    return unified


def rope_of(student: Path) -> Rope:
    """The rotation of transformers' own class for a student's config."""
    rotary = rotary_of(student)
    return Rope(inverse_frequencies=rotary.inv_freq.float(), factor=float(rotary.attention_scaling))


def _cast(reader: CheckpointReader, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> StoredTensor:
    return StoredTensor(dtype=dtype, shape=shape, load=lambda: cast_tensor(reader, name, dtype))


def _fp8_tensors(unified: CheckpointReader, config: dict[str, object], dims: Dims) -> dict[str, StoredTensor]:
    scales = read_scales(unified, config)
    found: dict[str, StoredTensor] = {}

    def keep(name: str, scale: torch.Tensor) -> None:
        found[name] = StoredTensor(dtype=torch.float32, shape=(), load=lambda: scale)

    def codes(name: str) -> StoredTensor:
        return StoredTensor(dtype=E4M3, shape=unified.shape(name), load=lambda: unified.tensor(name))

    for name in dims.linear_names():
        found[f"{name}.weight"] = codes(f"{name}.weight")
        keep(name + WEIGHT_SCALE, scales.weights[name])
        keep(name + INPUT_SCALE, scales.inputs[name])
    for index, key in scales.keys.items():
        at = f"{dims.family.layers}.{index}"
        keep(f"{at}.{dims.family.module('k')}{K_SCALE}", key)
        keep(f"{at}.{dims.family.module('v')}{V_SCALE}", scales.values[index])
    return found
