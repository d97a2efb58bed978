"""The second slicer: passes what the first one cut, and layers deleted by hand; refuses everything else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compressor.core.console import Console
from compressor.core.errors import VerificationError
from compressor.models.source import open_checkpoint, resolve_source
from compressor.models.tokenizer_files import copy_tokenizer
from compressor.pruning.prune_stage import PRUNE, PruneStageConfig
from compressor.recipe.recipe import Calibration, Prune
from compressor.runs.artifact import ModelArtifact, read_artifact
from compressor.runs.stage import StageContext, execute
from exporters.checks.config import check_tokenizer_files
from exporters.checks.pruned import check_pruned
from tests.corruptions.faults import chosen
from tests.corruptions.formats import change_json
from tests.tiny_models import make_model, save_checkpoint
from tests.unit.exporters.conftest import set_fields

SHAPE = {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
WEIGHTS = "model.safetensors"


def pruned(root: Path, model: Any, **shape: int) -> tuple[ModelArtifact, Path]:
    """A checkpoint pruned by the real stage, and its source."""
    source = open_checkpoint(
        resolve_source(str(save_checkpoint(root / "source", model))), root, dtype="float32"
    )
    context = StageContext(console=Console(), seed=3, device="cpu", dtype="bfloat16")
    config = PruneStageConfig(
        shape={**SHAPE, **shape}, prune=Prune(importance="random"), calibration=Calibration()
    )
    return execute(PRUNE, config, source, root / "pruned", context).artifact, source.path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "phi3", "qwen2", "qwen3"])
def test_what_the_stage_cut_is_what_source_and_plan_give(model_type: str, tied: bool, tmp_path: Path) -> None:
    model = make_model(model_type, num_hidden_layers=4, tie_word_embeddings=tied)
    made, source = pruned(tmp_path, model)
    found = check_pruned(made.path, made, source)
    assert found["num_recomputed_tensors"] == len(load_file(made.path / WEIGHTS))


@pytest.mark.parametrize("model_type", ["llama", "phi3", "qwen2"])
@pytest.mark.parametrize("keys", [2, 4])
def test_groups_of_heads_pass_too(model_type: str, keys: int, tmp_path: Path) -> None:
    model = make_model(model_type, num_hidden_layers=4, num_key_value_heads=keys)
    made, source = pruned(tmp_path, model, num_key_value_heads=keys // 2)
    found = check_pruned(made.path, made, source)
    assert found["num_recomputed_tensors"] == len(load_file(made.path / WEIGHTS))
    change_json(made.path / "prune_plan.json", lambda plan: plan["kept"]["kv_heads"].reverse())
    with pytest.raises(VerificationError, match=r"corrupt|differs"):
        check_pruned(made.path, made, source)


def test_layers_deleted_by_hand_in_plain_transformers_pass(tmp_path: Path) -> None:
    """The plan's definition of a kept layer, from outside: a module list without the others."""
    made, source = pruned(
        tmp_path,
        make_model(num_hidden_layers=4),
        hidden_size=64,
        intermediate_size=192,
        num_attention_heads=4,
    )
    removed = made.details["removed_layers"]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    kept = [layer for index, layer in enumerate(model.model.layers) if index not in removed]
    model.model.layers = torch.nn.ModuleList(kept)
    by_hand = Path(shutil.copytree(made.path, tmp_path / "by-hand"))
    save_file({name: p.contiguous() for name, p in model.named_parameters()}, by_hand / WEIGHTS)
    check_pruned(by_hand, made, source)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelArtifact, Path]:
    return pruned(tmp_path_factory.mktemp("pruned"), make_model(num_hidden_layers=4))


Change = Callable[[dict[str, Any]], None]


@chosen
def other_unit(plan: dict[str, Any], field: str, size: int) -> None:
    """Another unit in place of the last kept one of the first layer."""
    ranges = ([int(end) for end in part.split("-")] for part in plan["kept"][field][0].split())
    kept = {index for ends in ranges for index in range(ends[0], ends[-1] + 1)}
    other = max(set(range(size)) - kept)
    plan["kept"][field][0] = " ".join(map(str, sorted({*sorted(kept)[:-1], other})))


PLANS: dict[str, tuple[Change, str]] = {
    "another head": (other_unit("heads", 4), "q_proj|o_proj"),
    "another neuron": (other_unit("intermediate", 192), "mlp"),
    "a head more": (lambda plan: plan["kept"]["heads"].__setitem__(0, "0-3"), "corrupt"),
    "a layer more": (lambda plan: plan.update(layers="0-3"), "corrupt|removed_layers"),
    "beyond the source": (lambda plan: plan["kept"].update(hidden=["0-46 64"]), "corrupt"),
    "a range of billions": (lambda plan: plan["kept"].update(hidden=["0-99999999999"]), "corrupt"),
    "no numbers": (lambda plan: plan["kept"].update(hidden=["all"]), "corrupt"),
    "a list": (lambda plan: plan["kept"].update(heads=3), "corrupt"),
    "another schema": (lambda plan: plan.update(schema_id="x"), "schema_id"),
    "another model": (lambda plan: plan["source"].update(vocab_size=7), "another model"),
}


@pytest.mark.parametrize("name", PLANS)
def test_another_plan_is_refused(name: str, cut: tuple[ModelArtifact, Path], tmp_path: Path) -> None:
    made, source = cut
    change, message = PLANS[name]
    copy = Path(shutil.copytree(made.path, tmp_path / "copy"))
    change_json(copy / "prune_plan.json", change)
    with pytest.raises(VerificationError, match=message):
        check_pruned(copy, made, source)


CONFIGS: list[dict[str, Any]] = [
    {"rms_norm_eps": 1e-5},
    {"rope_theta": 1e4},  # of one generation alone
    {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
    {"eos_token_id": [3, 4]},
    {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8},
    {"sliding_window": 16},
    {"attention_dropout": 0.5},
    {"max_position_embeddings": 64},
    {"tie_word_embeddings": False},
]


@pytest.mark.parametrize("fields", CONFIGS, ids=lambda fields: next(iter(fields)))
def test_a_field_that_is_not_the_teachers_is_refused(
    fields: dict[str, Any], cut: tuple[ModelArtifact, Path], tmp_path: Path
) -> None:
    made, source = cut
    copy = Path(shutil.copytree(made.path, tmp_path / "copy"))
    set_fields(copy / "config.json", **fields)
    with pytest.raises(VerificationError, match=r"config\.json"):
        check_pruned(copy, made, source)


def test_a_wrong_figure_is_refused(cut: tuple[ModelArtifact, Path]) -> None:
    made, source = cut
    wrong = replace(read_artifact(made.path), details={"removed_layers": []})
    with pytest.raises(VerificationError, match="removed_layers"):
        check_pruned(made.path, wrong, source)


@pytest.mark.parametrize("stated", [{}, {"add_prefix_space": False}, {"add_prefix_space": True}])
@pytest.mark.parametrize("prefixed", [True, False])
def test_a_prefix_rule_that_a_stage_writes_out_is_no_difference(
    prefixed: bool, stated: dict[str, bool], tmp_path: Path
) -> None:
    """transformers 4.57 takes the rule from the config, so a stage says there what the tokenizer does."""
    root = save_checkpoint(tmp_path / "source", make_model(num_hidden_layers=4))
    rule = {"type": "ByteLevel", "add_prefix_space": prefixed, "use_regex": True, "trim_offsets": True}
    set_fields(root / "tokenizer.json", pre_tokenizer=rule)
    set_fields(root / "tokenizer_config.json", **stated)
    made = tmp_path / "made"
    made.mkdir()
    copy_tokenizer(root, made)

    check_tokenizer_files(made, root)
    set_fields(made / "tokenizer_config.json", add_prefix_space=not prefixed)
    with pytest.raises(VerificationError, match="add_prefix_space"):
        check_tokenizer_files(made, root)
