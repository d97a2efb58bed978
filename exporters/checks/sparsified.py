"""A sparsified checkpoint against its source: masks, kept weights, dense tensors, low-rank branches."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import JsonValue

from compressor.choices.sparsity import SPARSITY_METHODS
from compressor.core.errors import VerificationError
from compressor.models.checkpoint import CheckpointReader, read_config
from compressor.models.dims import dims_of_config
from compressor.models.shapes import is_parameter
from compressor.models.sparse.low_rank import has_adapter, read_adapter
from compressor.models.sparse.record import (
    MASKS_FILE,
    SPARSITY_FILE,
    SparsityRecord,
    read_masks,
    read_sparsity,
)
from compressor.runs.artifact import ModelArtifact
from compressor.sparsity.sparsify_stage import SPARSIFY
from exporters.checks.equality import expect_bits, expect_figures

_MAGNITUDE = "magnitude"


def check_masks(directory: Path, artifact: ModelArtifact) -> dict[str, JsonValue]:
    """Refuse a mask that drops a weight that is there, or keeps other than the pattern's number."""
    sparsity = _sparsity(directory)
    masks = read_masks(directory / MASKS_FILE, sparsity.shapes)
    counts: dict[str, tuple[int, int]] = {}
    with CheckpointReader(directory) as reader:
        for name, mask in masks.items():
            weight = reader.tensor(name)
            counts[name] = int((weight != 0).sum()), weight.numel()
            if bool((weight[~mask] != 0).any()):
                raise VerificationError("the mask drops a weight that is not zero", where=name)
            kept = mask.unflatten(-1, (-1, sparsity.pattern.group_size)).sum(-1)
            if bool((kept != sparsity.pattern.num_kept).any()):
                raise VerificationError(
                    "the mask does not keep its pattern's number in every group",
                    where=name,
                    expected=sparsity.pattern,
                    found=sorted(set(kept.flatten().tolist())),
                )
    if artifact.stage == SPARSIFY.name:
        _check_densities(directory, counts, sparsity, artifact)
    return {"num_masks": len(masks)}


def check_sparsified(directory: Path, artifact: ModelArtifact, source: Path) -> dict[str, JsonValue]:
    """Refuse what one-shot sparsification of `source` does not give.

    Tensors that are not recorded as sparse are the source's bit for bit. A method that only chooses a mask
    leaves kept weights as they were; magnitude's mask is chosen again here. What a method that changes
    weights gives is compared elsewhere with the sums that the stage recorded.
    """
    sparsity = _sparsity(directory)
    settings = artifact.inputs.get("config", {}).get("sparsify", {})
    method = artifact.details.get("method")
    row = SPARSITY_METHODS.get(str(method))
    only_masks = (row is not None and not row.changes_kept_weights) or settings.get("update_weights") is False
    masks = read_masks(directory / MASKS_FILE, sparsity.shapes)
    dims, num_equal = dims_of_config(read_config(source)), 0
    with CheckpointReader(source) as original, CheckpointReader(directory) as reader:
        for name in original:
            if not is_parameter(name, dims) and name not in reader:
                continue
            found = reader.tensor(name)
            dense = original.tensor(name).to(found.dtype)
            if name not in sparsity.shapes:
                expect_bits(name, dense, found, against="the source's")
            elif only_masks:
                if method == _MAGNITUDE and not settings.get("swaps"):
                    _is_largest(name, dense, masks[name], sparsity)
                expect_bits(name, torch.where(masks[name], dense, 0), found, against="the source's, masked")
            num_equal += name not in sparsity.shapes or only_masks
    if has_adapter(directory):
        check_branches(directory)
    return {"num_tensors_equal_to_source": num_equal}


def check_moved_masks(directory: Path, artifact: ModelArtifact, source: Path) -> dict[str, JsonValue]:
    """Refuse masks that training should have held, or that moved by another share than it reported."""
    sparsity = _sparsity(directory)
    before, after = (read_masks(path / MASKS_FILE, sparsity.shapes) for path in (source, directory))
    moved = {name: int((before[name] & ~mask).sum()) for name, mask in after.items()}
    if artifact.details.get("masks") == "fixed" and any(moved.values()):
        name = next(name for name, count in moved.items() if count)
        raise VerificationError("a mask that training keeps fixed has changed", where=name)
    share = round(sum(moved.values()) / sum(int(mask.sum()) for mask in before.values()), 6)
    expect_figures(directory, {"moved_share": share}, artifact.details)
    return {"moved_share": share}


def _check_densities(
    directory: Path, counts: dict[str, tuple[int, int]], sparsity: SparsityRecord, artifact: ModelArtifact
) -> None:
    """The shares of non-zero weights that the stage reported, counted again."""
    nonzero, total = (sum(count[part] for count in counts.values()) for part in (0, 1))
    counted = {"pattern": str(sparsity.pattern), "num_tensors": len(counts)}
    expect_figures(directory, {**counted, "density": round(nonzero / total, 6)}, artifact.details)
    layers = artifact.details.get("layers", {})
    for name, (count, size) in counts.items():
        expect_figures(directory, {"density": count / size}, layers.get(name, {}))


def _sparsity(directory: Path) -> SparsityRecord:
    sparsity = read_sparsity(directory)
    if sparsity is None:
        raise VerificationError(
            "the record of this checkpoint's sparsity is missing", where=str(directory / SPARSITY_FILE)
        )
    return sparsity


def _is_largest(name: str, dense: torch.Tensor, mask: torch.Tensor, sparsity: SparsityRecord) -> None:
    """Within every group no dropped weight is larger than a kept one."""
    size, groups = dense.abs().float(), (-1, sparsity.pattern.group_size)
    kept = torch.where(mask, size, torch.inf).unflatten(-1, groups).amin(-1)
    dropped = torch.where(mask, -torch.inf, size).unflatten(-1, groups).amax(-1)
    if bool((dropped > kept).any()):
        raise VerificationError("the mask drops a larger weight than it keeps", where=name)


def check_branches(directory: Path) -> None:
    """A branch that was not trained adds up groups of channels; its other matrix is known by its digest."""
    for name, branch in read_adapter(directory).items():
        columns = branch.down.shape[1]
        group = columns // branch.rank
        for row in range(branch.rank):
            wanted = torch.zeros(columns)
            wanted[row * group : (row + 1) * group] = 1
            expect_bits(f"{name}.lora_A[{row}]", wanted, branch.down[row], against="the groups' sums")
