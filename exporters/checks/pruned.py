"""A pruned checkpoint against its source and plan, by a second slicer.

Written from the plan's definition and not from the slicer that made the checkpoint: every kept row and
column is taken by plain indexing, tensor by tensor, by the name of its projection. Nothing is shared
with `compressor.pruning` but the plan's file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import JsonValue

from compressor.core.errors import VerificationError
from compressor.core.json_files import read_json_mapping
from compressor.models.checkpoint import CheckpointReader, read_config
from compressor.models.dims import Dims, dims_of_config
from compressor.pruning.plan import PLAN_FILE, SCHEMA
from compressor.runs.artifact import ModelArtifact
from exporters.checks.config import check_config, check_tokenizer_files
from exporters.checks.equality import expect_bits, expect_fields, expect_figures

_LAYER = re.compile(r"^(?P<prefix>.*?\blayers\.)(?P<index>\d+)(?P<rest>\..+)$")

# Which units the rows and the columns of a module's weight stand for; a bias and a norm have rows only.
_AXES: dict[str, tuple[str | None, str | None]] = {
    "embed_tokens": (None, "hidden"),
    "lm_head": (None, "hidden"),
    "norm": ("hidden", None),
    "input_layernorm": ("hidden", None),
    "post_attention_layernorm": ("hidden", None),
    "q_proj": ("heads", "hidden"),
    "k_proj": (None, "hidden"),
    "v_proj": (None, "hidden"),
    "qkv_proj": ("heads, then keys and values", "hidden"),
    "o_proj": ("hidden", "heads"),
    "q_norm": (None, None),
    "k_norm": (None, None),
    "gate_proj": ("intermediate", "hidden"),
    "up_proj": ("intermediate", "hidden"),
    "gate_up_proj": ("intermediate, twice", "hidden"),
    "down_proj": ("hidden", "intermediate"),
}


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The kept indices of a plan, as lists; those of MLP neurons and query heads per kept layer."""

    layers: list[int]
    hidden: list[int]
    intermediate: list[list[int]]
    heads: list[list[int]]


def check_pruned(directory: Path, artifact: ModelArtifact, source: Path) -> dict[str, JsonValue]:
    """Refuse a tensor or a config field of the prune stage's `directory` that source and plan do not give."""
    kept = check_cut(directory, artifact, source)
    dtype = _dtype(read_config(directory), directory)
    num_tensors = 0
    with CheckpointReader(directory) as reader:
        for name, tensor in cut_tensors(directory, source, kept):
            expect_bits(name, tensor.to(dtype), reader.tensor(name), against="the source cut by the plan")
            num_tensors += 1
    return {"num_recomputed_tensors": num_tensors, "config": "the source's, but for the planned axes"}


def check_cut(directory: Path, artifact: ModelArtifact, source: Path) -> Kept:
    """Refuse a config, a tokenizer or removed layers that are not the source's and the plan's."""
    teacher = dims_of_config(read_config(source))
    kept = read_kept(directory, teacher)
    removed = sorted(set(range(teacher.num_hidden_layers)) - set(kept.layers))
    expect_figures(directory, {"removed_layers": removed}, artifact.details)
    check_config(directory, source, changed=_student_shape(teacher, kept), layers=kept.layers)
    check_tokenizer_files(directory, source)
    return kept


def cut_tensors(
    directory: Path,
    source: Path,
    kept: Kept,
    *,
    change: Callable[[str, torch.Tensor], torch.Tensor] = lambda _name, tensor: tensor,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that the pruned checkpoint must hold, and no other: the source's, changed first, cut."""
    teacher = dims_of_config(read_config(source))
    with CheckpointReader(source) as original, CheckpointReader(directory) as reader:
        wanted = _wanted_names(original, kept, is_tied=teacher.tie_word_embeddings)
        _same_names(wanted, reader)
        for name, from_name in wanted.items():
            yield name, _cut(change(from_name, original.tensor(from_name)), name, kept, teacher)


def read_kept(directory: Path, teacher: Dims) -> Kept:
    """The kept indices of the plan in a directory, which must be whole and of this teacher."""
    file = directory / PLAN_FILE
    plan = read_json_mapping(file, what="the prune plan")
    what = "the prune plan is for another model, or was not written by this version of compress-export"
    expect_fields(what, {"schema_id": SCHEMA, "source": asdict(teacher)}, plan, where=f"{file}: ")
    try:
        (hidden,), units = plan["kept"]["hidden"], plan["kept"]
        kept = Kept(
            layers=_expand(plan["layers"], teacher.num_hidden_layers),
            hidden=_expand(hidden, teacher.hidden_size),
            intermediate=[_expand(part, teacher.intermediate_size) for part in units["intermediate"]],
            heads=[_expand(part, teacher.num_attention_heads) for part in units["heads"]],
        )
        sizes = {
            (len(neurons), len(heads)) for neurons, heads in zip(kept.intermediate, kept.heads, strict=True)
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VerificationError("the prune plan is corrupt", where=str(file), found=error) from error
    if len(kept.heads) != len(kept.layers) or len(sizes) != 1:
        raise VerificationError(
            "the prune plan is corrupt",
            where=str(file),
            expected=f"lists for {len(kept.layers)} layers, all of one length",
            found=f"{len(kept.heads)} lists of (neurons, heads) {sorted(sizes)}",
        )
    return kept


def _expand(text: str, size: int) -> list[int]:
    """`0-2 5` as [0, 1, 2, 5]: ascending, below `size`, at least one."""
    indices: list[int] = []
    for part in text.split():
        ends = [int(end) for end in part.split("-")]
        first, last = ends[0], ends[-1]
        if len(ends) > 2 or not (indices[-1] if indices else -1) < first <= last < size:  # noqa: PLR2004
            raise ValueError(f"{part!r} is no ascending range below {size}")
        indices.extend(range(first, last + 1))
    if not indices:
        raise ValueError("nothing is kept of an axis")
    return indices


def _student_shape(teacher: Dims, kept: Kept) -> dict[str, object]:
    """The config fields that the plan decides; key/value heads and their width stay the source's."""
    return {
        "hidden_size": len(kept.hidden),
        "intermediate_size": len(kept.intermediate[0]),
        "num_hidden_layers": len(kept.layers),
        "num_attention_heads": len(kept.heads[0]),
        "num_key_value_heads": teacher.num_key_value_heads,
        "head_dim": teacher.head_dim,
    }


def _dtype(config: dict[str, object], directory: Path) -> torch.dtype:
    dtype = getattr(torch, str(config.get("dtype")), None)
    if not isinstance(dtype, torch.dtype):
        raise VerificationError(
            "the config names no dtype",
            where=f"{directory / 'config.json'}: dtype",
            found=config.get("dtype"),
        )
    return dtype


def _wanted_names(original: CheckpointReader, kept: Kept, *, is_tied: bool) -> dict[str, str]:
    """Every name that the pruned checkpoint must hold, with the source's name of the same tensor."""
    wanted = {}
    for name in original:
        if name.endswith("rotary_emb.inv_freq") or (is_tied and name == "lm_head.weight"):
            continue
        match = _LAYER.match(name)
        if match is None:
            wanted[name] = name
        elif int(match["index"]) in kept.layers:
            position = kept.layers.index(int(match["index"]))
            wanted[f"{match['prefix']}{position}{match['rest']}"] = name
    return wanted


def _same_names(wanted: Mapping[str, str], reader: CheckpointReader) -> None:
    missing, extra = sorted(set(wanted) - set(reader)), sorted(set(reader) - set(wanted))
    if missing or extra:
        raise VerificationError(
            "the checkpoint holds other tensors than source and plan give",
            where=(missing or extra)[0],
            expected="there" if missing else "not there",
        )


def _cut(tensor: torch.Tensor, name: str, kept: Kept, teacher: Dims) -> torch.Tensor:
    """The kept part of a source tensor; `name` is its name in the pruned checkpoint."""
    module = name.split(".")[-2]
    if module not in _AXES:
        raise VerificationError("there is no rule to check this tensor by", where=name)
    rows, columns = (_units(axis, name, kept, teacher) for axis in _AXES[module])
    if rows is not None:
        tensor = tensor[rows]
    if columns is not None and tensor.dim() > 1:
        tensor = tensor[:, columns]
    return tensor


def _units(axis: str | None, name: str, kept: Kept, teacher: Dims) -> list[int] | None:
    if axis is None:
        return None
    if axis == "hidden":
        return kept.hidden
    match = _LAYER.match(name)
    assert match is not None
    position = int(match["index"])
    neurons, head_dim = kept.intermediate[position], teacher.head_dim
    queries = [head * head_dim + channel for head in kept.heads[position] for channel in range(head_dim)]
    if axis == "intermediate":
        return neurons
    if axis == "intermediate, twice":
        return neurons + [teacher.intermediate_size + neuron for neuron in neurons]
    if axis == "heads":
        return queries
    first = teacher.num_attention_heads * head_dim
    return queries + list(range(first, first + 2 * teacher.num_key_value_heads * head_dim))
