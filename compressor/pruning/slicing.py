"""The one slicer: applies a prune plan tensor by tensor, from safetensors to safetensors.

One block of rows of one tensor is in memory at a time, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compressor.core.errors import UnsupportedError, VerificationError
from compressor.models.checkpoint import (
    CheckpointReader,
    TensorSpec,
    read_config,
    row_blocks,
    write_checkpoint,
)
from compressor.models.config.fields import FULL, layer_types
from compressor.models.config.portable import write_config
from compressor.models.dims import Dims, dims_of_config
from compressor.models.shapes import is_parameter
from compressor.pruning.plan import PrunePlan

_BITS_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_Kept = torch.Tensor | None


def slice_checkpoint(
    source: Path,
    plan: PrunePlan,
    out_dir: Path,
    *,
    dtype: torch.dtype | None = None,
    on_tensor: Callable[[], None] = lambda: None,
) -> int:
    """Write the student that `plan` cuts out of `source`.

    Args:
        source: A safetensors checkpoint.
        plan: What to keep.
        out_dir: An existing directory for config and weights.
        dtype: Stored dtype; by default each tensor keeps its own.
        on_tensor: Called after every written tensor.

    Returns:
        The number of parameters written.

    Raises:
        VerificationError: when plan and checkpoint do not belong together.
        UnsupportedError: for a tensor whose role is unknown.
    """
    config = read_config(source)
    dims = dims_of_config(config)
    if dims.to_dict() != plan.source:
        raise VerificationError("the plan is for another model", expected=plan.source, found=dims.to_dict())
    write_config(out_dir, sliced_config(config, plan, dtype))
    with CheckpointReader(source) as reader:
        specs = [spec for name in reader if (spec := _sliced(reader, name, plan, dims, dtype)) is not None]
        write_checkpoint(out_dir, specs, on_tensor=on_tensor)
    return sum(torch.Size(spec.shape).numel() for spec in specs)


def num_tensors(source: Path) -> int:
    """How many tensors a checkpoint holds, for progress."""
    with CheckpointReader(source) as reader:
        return sum(1 for _ in reader)


def sliced_config(config: dict[str, Any], plan: PrunePlan, dtype: torch.dtype | None) -> dict[str, Any]:
    """The student's config: new dimensions, `head_dim` always explicit."""
    fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    changed = {name: plan.student[name] for name in (*fields, "num_key_value_heads", "head_dim")}
    changed |= _sliced_layer_types(config, plan)
    if dtype is not None:
        changed["dtype"] = str(dtype).removeprefix("torch.")
    return {**config, **changed}


def _sliced_layer_types(config: dict[str, Any], plan: PrunePlan) -> dict[str, Any]:
    """Which kept layers have a window, said by layer: a layer keeps what its index in the source gave it.

    `max_window_layers` counts too where the layers without a window come first, for readers of that alone.
    """
    dims = dims_of_config(config)
    types = config.get("layer_types") or layer_types(config, dims)
    if types is None or len(plan.layers) == len(types):
        return {}
    kept = [types[index] for index in plan.layers]
    changed: dict[str, Any] = {"layer_types": kept}
    num_full = kept.count(FULL)
    if config.get("use_sliding_window") and kept[:num_full] == [FULL] * num_full:
        changed["max_window_layers"] = num_full
    return changed


def _sliced(
    reader: CheckpointReader, name: str, plan: PrunePlan, dims: Dims, dtype: torch.dtype | None
) -> TensorSpec | None:
    """The spec of one sliced tensor, or None when its layer goes or it is no parameter of its own."""
    if not is_parameter(name, dims):
        return None
    target = _renamed(name, plan, dims)
    if target is None:
        return None
    rows, columns = _kept_of(name, plan, dims)
    shape = reader.shape(name)
    kept = tuple(
        size if indices is None else len(indices)
        for size, indices in zip(shape, (rows, columns), strict=False)
    )
    tensor = reader.tensor(name)
    return TensorSpec(
        name=target,
        shape=kept,
        dtype=dtype or tensor.dtype,
        blocks=lambda: _gather(tensor, rows, columns, dtype or tensor.dtype),
    )


def _layer_index(name: str, dims: Dims) -> int | None:
    prefix = dims.family.layers + "."
    return int(name[len(prefix) :].split(".", 1)[0]) if name.startswith(prefix) else None


def _renamed(name: str, plan: PrunePlan, dims: Dims) -> str | None:
    index = _layer_index(name, dims)
    if index is None:
        return name
    if index not in plan.layers:
        return None
    prefix = dims.family.layers
    return name.replace(f"{prefix}.{index}.", f"{prefix}.{plan.layers.index(index)}.", 1)


def _kept_of(name: str, plan: PrunePlan, dims: Dims) -> tuple[_Kept, _Kept]:
    """Kept rows and columns of a tensor by its role; None keeps all."""
    family = dims.family
    module, _, kind = name.rpartition(".")
    hidden = _indices(plan.hidden, dims.hidden_size)
    index = _layer_index(name, dims)
    if index is None:
        if module in (family.embedding, family.lm_head):
            return None, hidden
        if module == family.final_norm:
            return hidden, None
    else:
        role = module.removeprefix(f"{family.layers}.{index}.")
        position = plan.layers.index(index)
        neurons = _indices(plan.intermediate[position], dims.intermediate_size)
        heads = _head_channels(plan.heads[position], dims)
        columns = hidden if kind == "weight" else None
        if role in (family.attention_norm, family.mlp_norm):
            return hidden, None
        if role == family.q_proj:
            return heads, columns
        if role in (family.k_proj, family.v_proj, *family.head_norms):
            return None, columns if role in family.linear_layers else None
        if role in family.mlp_inputs:
            return neurons, columns
        if role == family.o_proj:
            return hidden, heads
        if role == family.down_proj:
            return hidden, neurons
    raise UnsupportedError(f"no rule how to slice this tensor of a {dims.model_type} model", where=name)


def _indices(kept: tuple[int, ...], size: int) -> _Kept:
    return None if len(kept) == size else torch.tensor(kept)


def _head_channels(heads: tuple[int, ...], dims: Dims) -> _Kept:
    kept = _indices(heads, dims.num_attention_heads)
    if kept is None:
        return None
    return (kept[:, None] * dims.head_dim + torch.arange(dims.head_dim)).flatten()


def _gather(tensor: torch.Tensor, rows: _Kept, columns: _Kept, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Row blocks of the kept part of a tensor."""
    if rows is None:
        blocks = row_blocks(tensor)
    else:
        num_blocks = max(1, sum(1 for _ in row_blocks(tensor)))
        blocks = (tensor.index_select(0, chosen) for chosen in rows.chunk(num_blocks))
    for block in blocks:
        kept = block if columns is None or block.dim() == 1 else _take_columns(block, columns)
        yield kept.to(dtype)


def _take_columns(block: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Columns of a block on the CPU, bit for bit; numpy gathers them several times as fast as torch."""
    bits = block.contiguous().view(_BITS_OF_SIZE[block.element_size()]).numpy()
    return torch.from_numpy(np.take(bits, columns.numpy(), axis=1)).view(block.dtype)
