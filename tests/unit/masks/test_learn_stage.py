"""Learning masks on a tiny model: an exact shape, the same bytes after a kill, a student that is checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.core.console import Console
from compressor.core.errors import UsageError, VerificationError
from compressor.masks.learn_stage import LEARN, LearnStageConfig
from compressor.masks.module import MaskTraining
from compressor.models.checkpoint import WEIGHTS_FILE
from compressor.models.load import load_model
from compressor.models.source import open_checkpoint, resolve_source
from compressor.pruning.plan import PLAN_FILE, read_plan
from compressor.recipe.recipe import Distill, LearnedMasks
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import StageContext, execute
from exporters.checks.learned import check_learned
from exporters.verification.verify import verify_directory
from tests.tiny_models import make_model, save_checkpoint

SHAPE = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {"num_attention_heads": 8, "head_dim": 8, "num_key_value_heads": 2}
STEPS = 8


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    """A model with four query heads in each of two key/value groups."""
    root = tmp_path_factory.mktemp("masks")
    path = save_checkpoint(root / "source", make_model(tie_word_embeddings=False, **WIDE))
    return open_checkpoint(resolve_source(str(path)), root, dtype="float32")


def config_of(
    text: Path,
    *,
    steps: int = STEPS,
    save_steps: int = 1000,
    shape: dict[str, int] = SHAPE,
    **masks: Any,
) -> LearnStageConfig:
    distill = Distill(data=str(text), context_length=16, save_steps=save_steps, report_to=())
    settings = {"tokens": steps * 2 * 16, "batch_size": 2, **masks}
    return LearnStageConfig(shape=shape, masks=LearnedMasks(**settings), distill=distill)


def learn(
    source: ModelArtifact, config: LearnStageConfig, out_dir: Path, *, dtype: str = "float32", seed: int = 0
) -> ModelArtifact:
    context = StageContext(console=Console(), seed=seed, device="cpu", dtype=dtype)
    return execute(LEARN, config, source, out_dir, context).artifact


@pytest.mark.parametrize("weights", ["trained", "frozen"])
@pytest.mark.parametrize("kind", ["hard-concrete", "deterministic"])
def test_masks_reach_the_exact_shape(
    source: ModelArtifact, tiny_text: Path, tmp_path: Path, kind: str, weights: str
) -> None:
    made = learn(source, config_of(tiny_text, kind=kind, weights=weights), tmp_path / "out", dtype="bfloat16")
    plan = read_plan(made.path / PLAN_FILE)
    config = load_model(made.path, dtype="float32", device="cpu").config
    assert {name: getattr(config, name) for name in SHAPE} == SHAPE
    for heads in plan.kept["heads"]:
        assert [sum(head // 4 == group for head in heads) for group in range(2)] == [2, 2]
    assert made.details["removed_layers"] == sorted({0, 1, 2} - set(plan.layers))
    assert made.details["masks"]["largest_misses"].keys() == {"hidden", "heads", "intermediate", "layers"}
    found = verify_directory(made.path, source=source.path).checked[0].found
    assert found["contents"] == "compared with its source"
    assert ("num_recomputed_tensors" in found) is (weights == "frozen")


def test_a_killed_training_ends_in_the_same_bytes(
    source: ModelArtifact, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tiny_text, steps=12, save_steps=5)
    whole = learn(source, config, tmp_path / "whole")
    after_step = MaskTraining.after_step

    def killed(self: MaskTraining, step: int) -> None:
        after_step(self, step)
        if step == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MaskTraining, "after_step", killed)
        with pytest.raises(KeyboardInterrupt):
            learn(source, config, tmp_path / "killed")
    resumed = learn(source, config, tmp_path / "killed")
    for name in (WEIGHTS_FILE, PLAN_FILE, "learned_masks.safetensors", "probes.safetensors"):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    assert resumed.details["curve"] == whole.details["curve"]
    assert not {"checkpoints", "tokens", "folded"} & {path.name for path in resumed.path.iterdir()}
    other = learn(source, config, tmp_path / "other", seed=1)
    assert (other.path / PLAN_FILE).read_bytes() != (whole.path / PLAN_FILE).read_bytes()


def test_only_what_shrinks_is_masked_and_frozen_weights_are_the_teachers(
    source: ModelArtifact, tiny_text: Path, tmp_path: Path
) -> None:
    narrow = {"intermediate_size": 96, "num_hidden_layers": 2}
    config = config_of(tiny_text, steps=6, shape=narrow, weights="frozen")
    made = learn(source, config, tmp_path / "out")
    masks = load_file(made.path / "learned_masks.safetensors")
    assert set(masks) == {"intermediate", "layers"}
    assert check_learned(made.path, made, source.path)["num_mask_axes"] == 2
    before, after = (load_file(path / WEIGHTS_FILE) for path in (source.path, made.path))
    plan = read_plan(made.path / PLAN_FILE)
    for name, tensor in after.items():
        parts = name.split(".")
        if parts[1] != "layers":
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
            continue
        layer = plan.layers[int(parts[2])]
        expected = before[".".join([*parts[:2], str(layer), *parts[3:]])]
        kept = list(plan.kept["intermediate"][int(parts[2])])
        if "down_proj" in name:
            expected = (expected * masks["intermediate"][layer] * masks["layers"][layer])[:, kept]
        elif "o_proj" in name:
            expected = expected * masks["layers"][layer]
        elif "gate_proj" in name or "up_proj" in name:
            expected = expected[kept]
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=0)


def test_the_loss_against_the_whole_model_and_dynamic_batches_are_followed(
    source: ModelArtifact, make_text: Callable[..., Path], tmp_path: Path
) -> None:
    domains = [f"{name}={make_text(seed=seed, name=f'{name}.txt')}" for seed, name in enumerate("ab")]
    dynamic = {"variant": "clipped", "interval_steps": 3, "eval_size": 2}
    config = config_of(Path("unused"), steps=8, kl_weight=0.5)
    distill = Distill(domains=domains, dynamic_batches=dynamic, context_length=16, report_to=())
    config = config.model_copy(update={"distill": distill})
    made = learn(source, config, tmp_path / "out")
    assert made.details["loss"].startswith("0.5")
    assert [update["step"] for update in made.details["dynamic_batches"]["updates"]] == [3, 6]
    assert set(made.details["domains"]) == {"a", "b"}


def test_a_student_of_the_models_own_shape_is_refused(
    source: ModelArtifact, tiny_text: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="nothing for masks to remove"):
        learn(source, config_of(tiny_text, shape={}), tmp_path / "out")


@pytest.fixture(scope="module")
def frozen(
    source: ModelArtifact, make_text: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> ModelArtifact:
    out_dir = tmp_path_factory.mktemp("frozen") / "out"
    return learn(source, config_of(make_text(), steps=6, weights="frozen"), out_dir, dtype="bfloat16")


def revive(directory: Path) -> None:
    """Give a removed hidden channel a mask."""
    file = directory / "learned_masks.safetensors"
    masks = load_file(file)
    masks["hidden"][(masks["hidden"] == 0).nonzero()[0]] = 0.5
    save_file(masks, file)


def scale(directory: Path) -> None:
    """Change one mask of a unit that stays."""
    file = directory / "learned_masks.safetensors"
    masks = load_file(file)
    masks["hidden"][(masks["hidden"] != 0).nonzero()[0]] *= 1.1
    save_file(masks, file)


def drop(directory: Path) -> None:
    (directory / "learned_masks.safetensors").unlink()


def swap(directory: Path) -> None:
    """Another layer in the plan."""
    file = directory / PLAN_FILE
    plan = json.loads(file.read_text())
    removed = ({0, 1, 2} - {int(index) for index in read_plan(file).layers}).pop()
    plan["layers"] = " ".join(str(index) for index in sorted({removed, min(read_plan(file).layers)}))
    file.write_text(json.dumps(plan))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (revive, "keep other units than the plan"),
        (scale, "times the learned masks"),
        (drop, "cannot be read"),
        (swap, "."),
    ],
)
def test_a_checker_refuses_what_masks_and_plan_do_not_give(
    frozen: ModelArtifact, source: ModelArtifact, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    directory = Path(shutil.copytree(frozen.path, tmp_path / "made"))
    assert check_learned(directory, frozen, source.path)["num_recomputed_tensors"] > 0
    damage(directory)
    with pytest.raises(VerificationError, match=message):
        check_learned(directory, frozen, source.path)
