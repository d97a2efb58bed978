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
from exporters.checks.equality import expect_bits, expect_equal, expect_fields, expect_figures
from exporters.checks.rotated import expect_rotated, gain_before, read_components

_LAYER = re.compile(r"^(?P<prefix>.*?\blayers\.)(?P<index>\d+)(?P<rest>\..+)$")

# Which units the rows and the columns of a module's weight stand for; a bias and a norm have rows only.
_AXES: dict[str, tuple[str | None, str | None]] = {
    "embed_tokens": (None, "hidden"),
    "lm_head": (None, "hidden"),
    "norm": ("hidden", None),
    "input_layernorm": ("hidden", None),
    "post_attention_layernorm": ("hidden", None),
    "q_proj": ("heads", "hidden"),
    "k_proj": ("kv heads", "hidden"),
    "v_proj": ("kv heads", "hidden"),
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
    """The kept indices of a plan, as lists; those of MLP neurons and heads per kept layer.

    With a rotation, which its sha256 names, those of the hidden size are principal components.
    """

    layers: list[int]
    hidden: list[int]
    intermediate: list[list[int]]
    heads: list[list[int]]
    kv_heads: list[list[int]]
    rotation: str | None = None


def check_pruned(directory: Path, artifact: ModelArtifact, source: Path) -> dict[str, JsonValue]:
    """Refuse a tensor or a config field of the prune stage's `directory` that source and plan do not give."""
    kept = check_cut(directory, artifact, source)
    components, _ = _components(directory, kept, dims_of_config(read_config(source)))
    dtype = _dtype(read_config(directory), directory)
    num_tensors = 0
    with CheckpointReader(source) as original, CheckpointReader(directory) as reader:
        for name, from_name, tensor in cut_tensors(directory, source, kept):
            num_tensors += 1
            found, module = reader.tensor(name), name.split(".")[-2]
            if components is None or "hidden" not in _AXES[module] or name.endswith(".bias"):
                expect_bits(name, tensor.to(dtype), found, against="the source cut by the plan")
                continue
            expect_equal("a tensor has another dtype than the config says", dtype, found.dtype, where=name)
            norm = gain_before(from_name, module)
            gain = original.tensor(norm) if norm else None
            expect_rotated(name, tensor, found, gain=gain, kept=components)
    return {"num_recomputed_tensors": num_tensors, "config": "the source's, but for the planned axes"}


def check_cut(directory: Path, artifact: ModelArtifact, source: Path) -> Kept:
    """Refuse a config, a tokenizer or figures that are not the source's and the plan's."""
    teacher = dims_of_config(read_config(source))
    kept = read_kept(directory, teacher)
    removed = sorted(set(range(teacher.num_hidden_layers)) - set(kept.layers))
    figures: dict[str, object] = {"removed_layers": removed}
    _, share = _components(directory, kept, teacher)
    if share is not None:
        figures["hidden_variance_kept"] = round(share, 6)
    expect_figures(directory, figures, artifact.details)
    check_config(directory, source, changed=_student_shape(teacher, kept), layers=kept.layers)
    check_tokenizer_files(directory, source)
    return kept


def _components(directory: Path, kept: Kept, teacher: Dims) -> tuple[torch.Tensor, float] | tuple[None, None]:
    """The principal components that the plan keeps, and their share of the variance; of a rotation only."""
    if kept.rotation is None:
        return None, None
    components, variances = read_components(directory, kept.rotation, teacher.hidden_size)
    return components[:, kept.hidden], (variances[kept.hidden].sum() / variances.sum()).item()


def cut_tensors(
    directory: Path,
    source: Path,
    kept: Kept,
    *,
    change: Callable[[str, torch.Tensor], torch.Tensor] = lambda _name, tensor: tensor,
) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Every tensor that the pruned checkpoint must hold, and no other: the source's, changed first, cut.

    Gives its name, the source's name, and the tensor; a hidden size by rotation is not cut.
    """
    teacher = dims_of_config(read_config(source))
    with CheckpointReader(source) as original, CheckpointReader(directory) as reader:
        wanted = _wanted_names(original, kept, is_tied=teacher.tie_word_embeddings)
        _same_names(wanted, reader)
        for name, from_name in wanted.items():
            yield name, from_name, _cut(change(from_name, original.tensor(from_name)), name, kept, teacher)


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
            kv_heads=_kept_groups(units, teacher),
            rotation=plan.get("rotation"),
        )
        lists = zip(kept.intermediate, kept.heads, kept.kv_heads, strict=True)
        sizes = {tuple(map(len, of_layer)) for of_layer in lists}
        _refuse_torn_groups(kept, teacher)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VerificationError("the prune plan is corrupt", where=str(file), found=error) from error
    if len(kept.heads) != len(kept.layers) or len(sizes) != 1:
        raise VerificationError(
            "the prune plan is corrupt",
            where=str(file),
            expected=f"lists for {len(kept.layers)} layers, all of one length",
            found=f"{len(kept.heads)} lists of (neurons, query heads, key/value heads) {sorted(sizes)}",
        )
    return kept


def _kept_groups(units: Mapping[str, list[str]], teacher: Dims) -> list[list[int]]:
    """The kept key/value heads of every kept layer: all of them where the plan does not list them."""
    if "kv_heads" in units:
        return [_expand(part, teacher.num_key_value_heads) for part in units["kv_heads"]]
    return [list(range(teacher.num_key_value_heads)) for _ in units["heads"]]


def _refuse_torn_groups(kept: Kept, teacher: Dims) -> None:
    """A query head must find the key/value head that it had, at the place that the class gives it."""
    before = teacher.num_attention_heads // teacher.num_key_value_heads
    for heads, groups in zip(kept.heads, kept.kv_heads, strict=True):
        now = len(heads) // len(groups)
        if len(heads) % len(groups) or [head // before for head in heads] != [
            group for group in groups for _ in range(now)
        ]:
            raise ValueError(f"query heads {heads} do not share key/value heads {groups} as in the source")


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
    """The config fields that the plan decides; the width of heads stays the source's."""
    untied = {} if kept.rotation is None else {"tie_word_embeddings": False}
    return {
        **untied,
        "hidden_size": len(kept.hidden),
        "intermediate_size": len(kept.intermediate[0]),
        "num_hidden_layers": len(kept.layers),
        "num_attention_heads": len(kept.heads[0]),
        "num_key_value_heads": len(kept.kv_heads[0]),
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
    if is_tied and kept.rotation is not None:
        wanted["lm_head.weight"] = "model.embed_tokens.weight"
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
        return kept.hidden if kept.rotation is None else None
    match = _LAYER.match(name)
    assert match is not None
    position = int(match["index"])
    neurons, head_dim = kept.intermediate[position], teacher.head_dim
    queries, keys = (
        [head * head_dim + channel for head in heads[position] for channel in range(head_dim)]
        for heads in (kept.heads, kept.kv_heads)
    )
    if axis == "intermediate":
        return neurons
    if axis == "intermediate, twice":
        return neurons + [teacher.intermediate_size + neuron for neuron in neurons]
    if axis in ("heads", "kv heads"):
        return queries if axis == "heads" else keys
    first = teacher.num_attention_heads * head_dim
    second = first + teacher.num_key_value_heads * head_dim
    return queries + [start + channel for start in (first, second) for channel in keys]
