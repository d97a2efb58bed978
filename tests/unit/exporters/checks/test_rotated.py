"""The check of a student by rotation passes what slicer and plain torch made, and refuses everything else."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor import api
from compressor.core.errors import VerificationError
from compressor.models.families import FAMILIES
from compressor.recipe.recipe import Calibration, Environment, Prune
from compressor.runs.artifact import ModelArtifact, sha256_of_file
from exporters.checks.pruned import check_pruned
from tests.corruptions.faults import flip_bit, set_value, swap
from tests.corruptions.formats import change_json, change_tensors
from tests.tiny_models import make_model, save_checkpoint

SHAPE = {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
WEIGHTS, ROTATION, PLAN = "model.safetensors", "rotation.safetensors", "prune_plan.json"
ROTATABLE = [name for name, family in FAMILIES.items() if family.rotatable]


def rotated(root: Path, model: Any, text: Path, dtype: str, **shape: int) -> tuple[ModelArtifact, Path]:
    """A checkpoint pruned by the real stage, and its source."""
    source = save_checkpoint(root / "source", model)
    settings = Prune(importance="random", hidden="rotation", shape={**SHAPE, **shape})
    made = api.prune(
        str(source),
        root / "pruned",
        settings=settings,
        calibration=Calibration(data=str(text), size=4, seq_len=32),
        execution=api.Execution(environment=Environment(dtype=dtype)),
    )
    return made, source


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", ROTATABLE)
def test_what_the_stage_wrote_passes(model_type: str, tied: bool, tiny_text: Path, tmp_path: Path) -> None:
    model = make_model(model_type, tie_word_embeddings=tied)
    made, source = rotated(tmp_path, model, tiny_text, "bfloat16")
    found = check_pruned(made.path, made, source)
    assert found["num_recomputed_tensors"] == len(load_file(made.path / WEIGHTS))


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def cut(
    request: pytest.FixtureRequest, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelArtifact, Path]:
    return rotated(tmp_path_factory.mktemp("rotated"), make_model(), tiny_text, request.param)


def test_what_plain_torch_writes_passes(tiny_text: Path, tmp_path: Path) -> None:
    """The formulas once more, with nothing but width taken: every product in the other order."""
    whole = {"intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4}
    made, source = rotated(tmp_path, make_model(), tiny_text, "float32", **whole)
    old = {name: tensor.double() for name, tensor in load_file(source / WEIGHTS).items()}
    basis = load_file(made.path / ROTATION)["components"].double()[:, :48]
    factor = (64 / 48) ** 0.5
    new = {
        "model.embed_tokens.weight": (basis.T @ old["model.embed_tokens.weight"].T).T,
        "lm_head.weight": (
            basis.T @ torch.diag(old["model.norm.weight"] * factor) @ old["model.embed_tokens.weight"].T
        ).T,
        "model.norm.weight": torch.ones(48),
    }
    for layer in (f"model.layers.{index}." for index in range(3)):
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            gain = torch.diag(old[f"{layer}{norm}.weight"] * factor)
            new[f"{layer}{norm}.weight"] = torch.ones(48)
            new |= {
                f"{layer}{name}.weight": (basis.T @ gain @ old[f"{layer}{name}.weight"].T).T
                for name in readers
            }
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            new[f"{layer}{name}.weight"] = (old[f"{layer}{name}.weight"].T @ basis).T
    save_file({name: tensor.float().contiguous() for name, tensor in new.items()}, made.path / WEIGHTS)
    check_pruned(made.path, made, source)


Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.1."
FAULTS: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "a norm of another constant": (
        set_value(f"{LAYER}input_layernorm.weight", lambda norm: norm * 1.1547),
        "input_layernorm",
    ),
    "the last norm": (set_value("model.norm.weight", lambda norm: norm * 0.5), "model.norm"),
    "a flipped bit of what reads": (flip_bit(f"{LAYER}self_attn.k_proj.weight"), "k_proj"),
    "a flipped bit of what writes": (flip_bit(f"{LAYER}mlp.down_proj.weight"), "down_proj"),
    "a flipped bit of the embedding": (flip_bit("model.embed_tokens.weight"), "embed_tokens"),
    "a flipped bit of the head": (flip_bit("lm_head.weight"), "lm_head"),
    "gate and up": (swap(f"{LAYER}mlp.gate_proj.", f"{LAYER}mlp.up_proj."), "gate_proj|up_proj"),
    "no factor": (set_value("lm_head.weight", lambda head: head * (48 / 64) ** 0.5), "lm_head"),
    "not a number": (set_value("lm_head.weight", lambda head: head * float("nan")), "lm_head"),
    "another dtype": (lambda tensors: tensors.update({"model.norm.weight": torch.ones(48).half()}), "dtype"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_another_weight_is_refused(name: str, cut: tuple[ModelArtifact, Path], tmp_path: Path) -> None:
    made, source = cut
    change, message = FAULTS[name]
    copy = Path(shutil.copytree(made.path, tmp_path / "copy"))
    change_tensors(copy / WEIGHTS, change)
    with pytest.raises(VerificationError) as caught:
        check_pruned(copy, made, source)
    assert re.search(message, f"{caught.value.what} {caught.value.where}")


def entry(tensors: Tensors) -> None:
    tensors["components"][3, 5] += 0.01


def reflected(tensors: Tensors) -> None:
    """Still orthonormal: only the weights say that it is another basis."""
    tensors["components"][:, 7] *= -1


def unsorted(tensors: Tensors) -> None:
    tensors["variances"] = tensors["variances"].flip(0).contiguous()


ROTATIONS: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "a wrong entry": (entry, "orthonormal"),
    "a component turned round": (reflected, "embed_tokens"),
    "other variances": (lambda tensors: tensors["variances"][0].mul_(2), "hidden_variance_kept"),
    "unsorted variances": (unsorted, "descend"),
    "no variances": (lambda tensors: tensors.pop("variances"), "cannot be read"),
    "another size": (
        lambda tensors: tensors.update(components=tensors["components"][:, :48].contiguous()),
        "size",
    ),
}


@pytest.mark.parametrize("named", [True, False], ids=["named by the plan", "not named"])
@pytest.mark.parametrize("name", ROTATIONS)
def test_another_rotation_is_refused(
    name: str, named: bool, cut: tuple[ModelArtifact, Path], tmp_path: Path
) -> None:
    made, source = cut
    change, message = ROTATIONS[name]
    copy = Path(shutil.copytree(made.path, tmp_path / "copy"))
    change_tensors(copy / ROTATION, change)
    if named:
        digest = sha256_of_file(copy / ROTATION)
        change_json(copy / PLAN, lambda plan: plan.update(rotation=digest))
    elif "variances" in load_file(copy / ROTATION):
        message = "not the one that the prune plan names"
    with pytest.raises(VerificationError) as caught:
        check_pruned(copy, made, source)
    assert message in f"{caught.value.what} {caught.value.where}"


def test_a_plan_that_hides_the_rotation_is_refused(cut: tuple[ModelArtifact, Path], tmp_path: Path) -> None:
    made, source = cut
    copy = Path(shutil.copytree(made.path, tmp_path / "copy"))
    plan = json.loads((copy / PLAN).read_text())
    del plan["rotation"]
    (copy / PLAN).write_text(json.dumps(plan))
    with pytest.raises(VerificationError, match="config"):
        check_pruned(copy, made, source)
    (copy / ROTATION).unlink()
    shutil.copyfile(made.path / PLAN, copy / PLAN)
    with pytest.raises(VerificationError, match="the rotation cannot be read"):
        check_pruned(copy, made, source)
