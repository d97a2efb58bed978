"""SLoRB (Adaptive Sparse Trainer, arXiv 2407.20584): a low-rank branch beside a sparse matrix.

y = (m ⊙ W) x + S (X x). X `[r, d]` adds up groups of k input channels (r = d / k), S `[N, r]` holds a weight
per output and group, so a branch can restore the dense output exactly for inputs that are constant inside
each group.

Departure: S starts from least squares on the inputs of the layer (`compressor.repair.branch`). Published is
the mean of what the mask removed from each group.

The branch is kept beside the checkpoint as a standard PEFT LoRA adapter, lora_A = X and lora_B = S, with
`alpha_pattern` equal to `rank_pattern` so that its scaling is 1. It cannot be merged: S X has no zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from compressor.core.errors import UnsupportedError, UsageError, VerificationError
from compressor.core.json_files import read_json_mapping
from compressor.models.digests import tensor_digest
from compressor.runs.artifact import write_json

ADAPTER_DIRECTORY = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
GROUP_SIZE = 16
_PREFIX = "base_model.model."
# What PEFT writes beside, which changes nothing.
_OF_PEFT = ("peft_version", "revision")
# What PEFT writes for what is not used here, whenever it saves an adapter again.
_DEFAULTS = {"megatron_core": "megatron.core", "qalora_group_size": 16}


@dataclass(frozen=True, kw_only=True)
class AdapterBranch:
    """The branch of one linear layer, float32: `down` is X, `[rank, in]`, and `up` S, `[out, rank]`."""

    down: torch.Tensor
    up: torch.Tensor

    @property
    def rank(self) -> int:
        """R."""
        return int(self.down.shape[0])

    @property
    def group_size(self) -> int:
        """K, input channels per rank."""
        return int(self.down.shape[1]) // self.rank

    @property
    def num_parameters(self) -> int:
        """Of both matrices."""
        return self.down.numel() + self.up.numel()


def group_sums(columns: int, group_size: int = GROUP_SIZE) -> torch.Tensor:
    """X `[rank, columns]` as published; unsupported where the columns do not divide into groups."""
    if columns % group_size:
        raise UnsupportedError(
            "the low-rank branch does not fit this layer",
            expected=f"a multiple of {group_size} columns",
            found=columns,
            hint="choose a --slorb-group-size that divides the columns",
        )
    return torch.eye(columns // group_size).repeat_interleave(group_size, dim=1)


def write_adapter(directory: Path, branches: Mapping[str, AdapterBranch]) -> None:
    """Write `adapter/` by linear layers' full names, for `peft.PeftModel.from_pretrained(model, adapter)`."""
    target = directory / ADAPTER_DIRECTORY
    target.mkdir(exist_ok=True)
    tensors = {}
    for name, branch in branches.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = branch.down.detach().cpu().contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = branch.up.detach().cpu().contiguous()
    save_file(tensors, target / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    write_json(target / ADAPTER_CONFIG, _adapter_config(branches))


def _adapter_config(branches: Mapping[str, AdapterBranch]) -> dict[str, object]:
    """`adapter_config.json`: PEFT then computes S (X x) beside every layer named, scaled by one."""
    ranks = {name: branch.rank for name, branch in branches.items()}
    largest = max(ranks.values())
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(ranks),
    }


def branch_digests(name: str, branch: AdapterBranch) -> dict[str, str]:
    """Digests of a linear layer's branch as it is in memory, under names of their own."""
    return {
        f"{ADAPTER_DIRECTORY}/{name}.lora_A": tensor_digest(branch.down),
        f"{ADAPTER_DIRECTORY}/{name}.lora_B": tensor_digest(branch.up),
    }


def has_adapter(directory: Path) -> bool:
    """Whether a checkpoint has a branch beside it."""
    return (directory / ADAPTER_DIRECTORY).is_dir()


def read_adapter(directory: Path) -> dict[str, AdapterBranch]:
    """Read `adapter/` back, by the linear layers' full names: a UsageError where there is none.

    One that is corrupt, or by whose config PEFT would compute something else, is a VerificationError.
    """
    folder = directory / ADAPTER_DIRECTORY
    if not has_adapter(directory):
        raise UsageError(
            "this checkpoint has no adapter",
            where=str(directory),
            hint="make one: compress-export sparsify with --slorb fixed or trained",
        )
    config = read_json_mapping(folder / ADAPTER_CONFIG, what="the adapter's config")
    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise VerificationError("the adapter cannot be read", where=str(folder), found=error) from error
    names = config.get("rank_pattern")
    if not isinstance(names, dict) or not names:
        raise _wrong_config(folder, "rank_pattern", "a rank for every layer", names)
    wanted = {f"{_PREFIX}{name}.lora_{part}.weight" for name in names for part in "AB"}
    if wanted != set(tensors):
        odd = min(wanted ^ set(tensors))
        raise VerificationError(
            "the adapter's tensors are not those of its config",
            where=f"{folder / ADAPTER_WEIGHTS}: {odd}",
            expected="there" if odd in wanted else "not there",
        )
    branches = {
        name: AdapterBranch(
            down=tensors[f"{_PREFIX}{name}.lora_A.weight"], up=tensors[f"{_PREFIX}{name}.lora_B.weight"]
        )
        for name in names
    }
    _check_adapter_config(folder, config, branches)
    return branches


def _check_adapter_config(
    folder: Path, config: dict[str, object], branches: Mapping[str, AdapterBranch]
) -> None:
    """Refuse a config by which PEFT would compute something else than S (X x) beside every layer.

    A field that is not written here may be there only where it is off: `use_rslora` scales by the root of
    the rank, `use_dora` divides by a norm, `layers_to_transform` leaves layers out.
    """
    expected = _adapter_config(branches)
    free = ("base_model_name_or_path", "init_lora_weights", "inference_mode", "lora_dropout", "task_type")
    for name, value in expected.items():
        found = config.get(name)
        if isinstance(found, list) and name == "target_modules":
            found = sorted(map(str, found))
        if name not in free and found != value:
            raise _wrong_config(folder, name, value, found)
    for name in sorted(set(config) - set(expected)):
        is_default = name in _DEFAULTS and config[name] == _DEFAULTS[name]
        if config[name] and name not in _OF_PEFT and not is_default:
            raise _wrong_config(folder, name, "absent, or off", config[name])


def _wrong_config(folder: Path, name: str, expected: object, found: object) -> VerificationError:
    return VerificationError(
        "the adapter's config computes something else than its branch",
        where=f"{folder / ADAPTER_CONFIG}: {name}",
        expected=expected,
        found=found,
    )


def adds_groups(branch: AdapterBranch) -> bool:
    """Whether a branch's X is as published; one that was trained is not."""
    columns = branch.down.shape[1]
    return columns % branch.rank == 0 and torch.equal(branch.down, group_sums(columns, branch.group_size))


def refuse_adapter(directory: Path, *, by: str) -> None:
    """Refuse, as unsupported, a checkpoint with a branch where it would be dropped or merged."""
    if has_adapter(directory):
        raise UnsupportedError(
            f"{by} cannot carry the low-rank branch of this sparse model",
            where=str(directory / ADAPTER_DIRECTORY),
            expected="a checkpoint without adapter/; merging it would fill the zeros of the sparse weights",
            hint="use export --format huggingface, which carries it, or sparsify without --slorb",
        )
