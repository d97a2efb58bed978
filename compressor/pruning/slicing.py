"""The one slicer: applies a prune plan tensor by tensor, from safetensors to safetensors.

One block of rows of one tensor is in memory at a time, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from compressor.core.errors import UnsupportedError, VerificationError
from compressor.models.axes import Weight
from compressor.models.checkpoint import (
    CheckpointReader,
    TensorSpec,
    read_config,
    row_blocks,
    write_checkpoint,
)
from compressor.models.config.fields import FULL, layer_types
from compressor.models.config.portable import write_config
from compressor.models.dims import SHAPE_FIELDS, dims_of_config
from compressor.models.shapes import is_parameter
from compressor.pruning.plan import PrunePlan
from compressor.pruning.rotation import (
    STREAM,
    Rotation,
    is_norm,
    norm_of,
    reading_blocks,
    writes,
    writing_blocks,
)

_BITS_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def slice_checkpoint(
    source: Path,
    plan: PrunePlan,
    out_dir: Path,
    *,
    dtype: torch.dtype | None = None,
    rotation: Rotation | None = None,
    on_tensor: Callable[[], None] = lambda: None,
) -> int:
    """Write the student that `plan` cuts out of `source` into a directory; returns its number of parameters.

    Without a stored `dtype` each tensor keeps its own. The `rotation` is the one that the plan names, if any.

    Raises:
        VerificationError: when plan and checkpoint do not belong together.
        UnsupportedError: for a tensor that the model class does not have.
    """
    assert (rotation is None) == (plan.rotation is None)
    config = read_config(source)
    dims = dims_of_config(config)
    if dims != plan.source:
        raise VerificationError(
            "the prune plan is for another model", where=str(source), expected=plan.source, found=dims
        )
    write_config(out_dir, sliced_config(config, plan, dtype))
    weights = dims.weights()
    cut = _sliced if rotation is None else partial(_rotated, rotation.kept(plan))
    with CheckpointReader(source) as reader:
        specs = []
        for name in filter(partial(is_parameter, dims=dims), reader):
            if name not in weights:
                raise UnsupportedError(
                    f"unknown tensor {name} in a {dims.model_type} model: not supported yet",
                    where=str(source),
                    hint="start from a checkpoint that holds the tensors of the model class and no others",
                )
            weight, layer = weights[name]
            if layer is None or layer in plan.layers:
                tensor = reader.tensor(name)
                specs.append(cut(_Part(reader, tensor, weight, layer, plan, dtype or tensor.dtype)))
        if dims.tie_word_embeddings and not plan.student.tie_word_embeddings:
            tensor, head = reader.tensor(f"{dims.family.embedding}.weight"), dims.family.find("head")
            assert head is not None
            specs.append(cut(_Part(reader, tensor, head, None, plan, dtype or tensor.dtype)))
        write_checkpoint(out_dir, specs, on_tensor=on_tensor)
    return sum(torch.Size(spec.shape).numel() for spec in specs)


def sliced_config(
    config: Mapping[str, object], plan: PrunePlan, dtype: torch.dtype | None
) -> dict[str, object]:
    """The student's config: new dimensions, `head_dim` always explicit."""
    student = plan.student
    changed: dict[str, object] = {
        name: getattr(student, name) for name in SHAPE_FIELDS if name != "vocab_size"
    }
    changed |= _sliced_layer_types(config, plan)
    if plan.rotation is not None:
        changed["tie_word_embeddings"] = False
    if dtype is not None:
        changed["dtype"] = str(dtype).removeprefix("torch.")
    return {**config, **changed}


def _sliced_layer_types(config: Mapping[str, object], plan: PrunePlan) -> dict[str, object]:
    """Which kept layers have a window, said by layer: a layer keeps what its index in the source gave it.

    `max_window_layers` counts too where the layers without a window come first, for readers of that alone.
    """
    dims = dims_of_config(config)
    given = config.get("layer_types")
    types = tuple(map(str, given)) if given and isinstance(given, list) else layer_types(config, dims)
    if types is None or len(plan.layers) == len(types):
        return {}
    kept = [types[index] for index in plan.layers]
    changed: dict[str, object] = {"layer_types": kept}
    num_full = kept.count(FULL)
    if config.get("use_sliding_window") and kept[:num_full] == [FULL] * num_full:
        changed["max_window_layers"] = num_full
    return changed


@dataclass(frozen=True)
class _Part:
    """A tensor of the source, and what is to be made of it."""

    reader: CheckpointReader
    tensor: torch.Tensor
    weight: Weight
    layer: int | None
    plan: PrunePlan
    dtype: torch.dtype

    @property
    def rows(self) -> torch.Tensor | None:
        """The kept rows; None for all."""
        return kept_channels(self.plan, tuple(self.weight.rows.values()), self.layer)

    @property
    def columns(self) -> torch.Tensor | None:
        """The kept columns; None for all, or of a vector."""
        axis = self.weight.columns
        return kept_channels(self.plan, (axis,), self.layer) if axis else None

    def spec(self, blocks: Callable[[], Iterator[torch.Tensor]]) -> TensorSpec:
        """The student's tensor."""
        family, layer = self.plan.source.family, self.layer
        prefix = "" if layer is None else f"{family.layers}.{self.plan.layers.index(layer)}."
        shape = self.plan.student.shape_of(self.weight)
        return TensorSpec(name=prefix + self.weight.name, shape=shape, dtype=self.dtype, blocks=blocks)

    def gain(self) -> torch.Tensor | None:
        """The weight of the norm before a matrix that reads the residual stream."""
        part, family = norm_of(self.weight), self.plan.source.family
        if part is None:
            return None
        norm = family.find(part)
        assert norm is not None
        prefix = f"{family.layers}.{self.layer}." if norm in family.layer else ""
        return self.reader.tensor(prefix + norm.name)


def _sliced(part: _Part) -> TensorSpec:
    """The spec of the kept part of one tensor."""
    rows, columns = part.rows, part.columns
    return part.spec(lambda: _gather(part.tensor, rows, columns, part.dtype))


def _rotated(kept: torch.Tensor, part: _Part) -> TensorSpec:
    """The spec of the kept part of one tensor of the rotated model; see `compressor.pruning.rotation`."""
    tensor, weight, dtype = part.tensor, part.weight, part.dtype
    if is_norm(weight):
        return part.spec(lambda: iter((torch.ones(kept.shape[1], dtype=dtype),)))
    if writes(weight):
        return part.spec(lambda: writing_blocks(tensor, part.columns, kept, dtype))
    if weight.columns == STREAM:
        blocks = partial(_gather, tensor, part.rows, None, tensor.dtype)
        return part.spec(lambda: reading_blocks(blocks(), kept, part.gain(), dtype))
    return _sliced(part)


def kept_channels(plan: PrunePlan, axes: tuple[str, ...], layer: int | None) -> torch.Tensor | None:
    """The kept rows or columns of a tensor whose parts have these axes, in order; None keeps all."""
    dims = plan.source
    chosen = [plan.units(axis, layer) for axis in axes]
    if all(units is None for units in chosen):
        return None
    channels, first = [], 0
    for axis, units in zip(axes, chosen, strict=True):
        width = dims.width(axis)
        kept = torch.arange(dims.units(axis)) if units is None else torch.tensor(units)
        channels.append(first + (kept[:, None] * width + torch.arange(width)).flatten())
        first += dims.size(axis)
    return torch.cat(channels)


def _gather(
    tensor: torch.Tensor, rows: torch.Tensor | None, columns: torch.Tensor | None, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """Row blocks of the kept part of a tensor."""
    if rows is None:
        blocks = row_blocks(tensor)
    else:
        num_blocks = len(list(row_blocks(tensor)))
        blocks = (tensor.index_select(0, chosen) for chosen in rows.chunk(num_blocks))
    for block in blocks:
        kept = block if columns is None or block.dim() == 1 else _take_columns(block, columns)
        yield kept.to(dtype)


def _take_columns(block: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Columns of a block on the CPU, bit for bit; numpy gathers them several times as fast as torch."""
    bits = block.contiguous().view(_BITS_OF_SIZE[block.element_size()]).numpy()
    return torch.from_numpy(np.take(bits, columns.numpy(), axis=1)).view(block.dtype)
