"""A few whole layers of a model as a checkpoint of their own, streamed: what a preflight works on.

The slice keeps vocabulary, widths and heads, and layers of every kind of attention that the model has. Of a
model that does not exist yet, the student that a later member of a family is made from, widths are cut at
random: its numbers mean nothing, its shape is what matters.
"""

from __future__ import annotations

from pathlib import Path

from compressor.models.checkpoint import read_config
from compressor.models.config.fields import layer_types
from compressor.models.dims import GROUP_FIELDS, PRUNABLE_FIELDS, Dims, dims_of_config
from compressor.models.tokenizer_files import copy_tokenizer
from compressor.pruning.importance import random_importance
from compressor.pruning.plan import make_plan
from compressor.pruning.slicing import slice_checkpoint


def slice_layers(source: Path, shape: Dims, out_dir: Path) -> None:
    """Write the checkpoint that `shape` describes, cut out of a larger one, into an empty directory.

    One block of rows of one tensor is in memory at a time. `shape` has fewer layers than the source and
    nothing else that is larger.

    Raises:
        VerificationError: for a checkpoint that cannot be read.
        UnsupportedError: for a tensor that the model class does not have.
    """
    config = read_config(source)
    dims = dims_of_config(config)
    kept = kept_by_kind(layer_types(config, dims) or ("",) * dims.num_hidden_layers, shape.num_hidden_layers)
    sizes = {name: getattr(shape, name) for name in (*PRUNABLE_FIELDS, *GROUP_FIELDS)}
    plan = make_plan(
        dims,
        dims.with_shape(**sizes),
        random_importance(dims, seed=0),
        importance="none: a slice",
        removed_layers=tuple(index for index in range(dims.num_hidden_layers) if index not in kept),
    )
    slice_checkpoint(source, plan, out_dir)
    copy_tokenizer(source, out_dir)


def kept_by_kind(kinds: tuple[str, ...], count: int) -> tuple[int, ...]:
    """So many layers, ascending: the first of every kind, as far as they go, then the first of all others."""
    firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    others = [index for index in range(len(kinds)) if index not in firsts]
    return tuple(sorted([*firsts, *others][:count]))
