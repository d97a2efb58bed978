"""A checkpoint pruned by learned masks against its source, its plan and the masks it records.

Every mask must be 0 for exactly the units that the plan removes. Where the model's weights were frozen, each
tensor is computed again in float64: the source's, times the masks by the name of its module, cut by the
second slicer. Weights that were trained with the masks have no second source but the digests and probes from
memory.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from pydantic import JsonValue
from safetensors import SafetensorError
from safetensors.torch import load_file

from compressor.core.errors import VerificationError
from compressor.models.checkpoint import CheckpointReader, read_config
from compressor.models.dims import Dims, dims_of_config
from compressor.runs.artifact import ModelArtifact
from exporters.checks.pruned import Kept, check_cut, cut_tensors

MASKS_FILE = "learned_masks.safetensors"

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_WRITERS = {"o_proj": "heads", "down_proj": "intermediate"}
# A product in float32, of up to four factors.
_FLOAT32_ROUNDING = 8 * torch.finfo(torch.float32).eps


def check_learned(directory: Path, artifact: ModelArtifact, source: Path) -> dict[str, JsonValue]:
    """Refuse masks that are not the plan's, and frozen weights that are not the source's times the masks."""
    teacher = dims_of_config(read_config(source))
    kept = check_cut(directory, artifact, source)
    masks = _masks(directory, teacher, kept)
    found: dict[str, JsonValue] = {"num_mask_axes": len(masks)}
    if artifact.inputs.get("config", {}).get("masks", {}).get("weights") != "frozen":
        return found
    whole = _whole(masks, teacher)
    folded = cut_tensors(
        directory, source, kept, change=lambda name, tensor: _times_masks(name, tensor, whole, teacher)
    )
    num_tensors = 0
    with CheckpointReader(directory) as reader:
        for name, _, expected in folded:
            _expect_near(name, expected, reader.tensor(name))
            num_tensors += 1
    return {**found, "num_recomputed_tensors": num_tensors}


def _masks(directory: Path, teacher: Dims, kept: Kept) -> dict[str, torch.Tensor]:
    """The recorded masks, which must be 0 where the plan removes a unit, and nowhere else."""
    file = directory / MASKS_FILE
    try:
        masks = load_file(file)
    except (SafetensorError, OSError) as error:
        raise VerificationError("the learned masks cannot be read", where=str(file), found=error) from error
    expected = _kept_units(teacher, kept)
    if set(masks) != set(expected):
        what = "the learned masks are of other axes than the plan removes units of"
        raise VerificationError(what, where=str(file), expected=sorted(expected), found=sorted(masks))
    for name, units in expected.items():
        found = masks[name]
        if found.shape != units.shape or not found.isfinite().all() or not torch.equal(found != 0, units):
            raise VerificationError(
                "the learned masks keep other units than the plan",
                where=f"{file}: {name}",
                expected=f"{int(units.sum())} of {units.numel()} that are not 0, where the plan keeps a unit",
                found=f"{int((found != 0).sum())} of {found.numel()}",
            )
    return masks


def _kept_units(teacher: Dims, kept: Kept) -> dict[str, torch.Tensor]:
    """Which units of the source the plan keeps, of every axis that it shortens; of a removed layer none."""
    num_layers = teacher.num_hidden_layers
    sizes = {
        "hidden": (len(kept.hidden), teacher.hidden_size),
        "intermediate": (len(kept.intermediate[0]), teacher.intermediate_size),
        "heads": (len(kept.heads[0]), teacher.num_attention_heads),
        "layers": (len(kept.layers), num_layers),
    }
    units = {
        "hidden": torch.zeros(teacher.hidden_size, dtype=torch.bool),
        "intermediate": torch.zeros(num_layers, teacher.intermediate_size, dtype=torch.bool),
        "heads": torch.zeros(num_layers, teacher.num_attention_heads, dtype=torch.bool),
        "layers": torch.zeros(num_layers, dtype=torch.bool),
    }
    units["hidden"][kept.hidden] = True
    units["layers"][kept.layers] = True
    for position, layer in enumerate(kept.layers):
        units["intermediate"][layer, kept.intermediate[position]] = True
        units["heads"][layer, kept.heads[position]] = True
    return {name: units[name] for name, (num_kept, num_units) in sizes.items() if num_kept < num_units}


def _whole(masks: dict[str, torch.Tensor], teacher: Dims) -> dict[str, torch.Tensor]:
    """Masks of every axis in float64, 1 where nothing was masked."""
    sizes = {
        "hidden": (teacher.hidden_size,),
        "intermediate": (teacher.num_hidden_layers, teacher.intermediate_size),
        "heads": (teacher.num_hidden_layers, teacher.num_attention_heads),
        "layers": (teacher.num_hidden_layers,),
    }
    return {name: masks.get(name, torch.ones(size)).double() for name, size in sizes.items()}


def _times_masks(
    name: str, tensor: torch.Tensor, masks: dict[str, torch.Tensor], teacher: Dims
) -> torch.Tensor:
    """A source tensor with the masks of its module multiplied in, in float64."""
    module, product = name.split(".")[-2], tensor.double()
    found = _LAYER.search(name)
    if found is None:
        is_masked = module == "embed_tokens" or (module == "norm" and not teacher.tie_word_embeddings)
        return product * masks["hidden"] if is_masked else product
    layer = int(found[1])
    if module in _NORMS:
        return product * masks["hidden"]
    if module not in _WRITERS:
        return product
    columns = masks[_WRITERS[module]][layer]
    if module == "o_proj":
        columns = columns.repeat_interleave(teacher.head_dim)
    return product * columns * (masks["hidden"] * masks["layers"][layer])[:, None]


def _expect_near(name: str, expected: torch.Tensor, found: torch.Tensor) -> None:
    """Refuse a tensor that differs by more than the rounding of its own dtype."""
    kind = torch.finfo(found.dtype)
    allowed = expected.abs() * (kind.eps + _FLOAT32_ROUNDING) + kind.tiny
    if found.shape != expected.shape or not ((found.double() - expected).abs() <= allowed).all():
        raise VerificationError(
            "a tensor differs from the source's, times the learned masks and cut by the plan", where=name
        )
