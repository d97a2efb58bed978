"""Recovery of a sparse student: the pattern at the end, fixed masks, learned branches, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compressor.core.errors import UsageError
from compressor.distillation.distill_stage import DISTILL
from compressor.models.checkpoint import WEIGHTS_FILE
from compressor.models.load import load_model
from compressor.models.sparse.low_rank import read_adapter
from compressor.models.sparse.record import MASKS_FILE, read_masks, read_sparsity
from compressor.recipe.recipe import Distill, Sparsify
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import execute
from compressor.sparsity.sparse_finetune import RECOVER, RecoverStageConfig, moving_schedule
from exporters.verification.verify import verify_directory
from tests.unit.sparsity.conftest import Sparsified, artifact_of, context


def recover(
    made: Sparsified,
    out_dir: Path,
    *,
    start: dict[str, Any] | None = None,
    losses: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
    **settings: Any,
) -> tuple[ModelArtifact, ModelArtifact]:
    source = made.make(method="sparsegpt", **(start or {}))
    steps = {"tokens": 1920, "context_length": 32, "batch_size": 2, "learning_rate": 3e-3, "warmup_steps": 1}
    distill = Distill(data=str(made.text), **steps, **(losses or {}))
    sparsify = Sparsify(**{"pattern": "2:4", **settings, **(start or {})})
    config = RecoverStageConfig(distill=distill, sparsify=sparsify)
    where = context(teacher=artifact_of(made.dense), trust_remote_code=trust_remote_code)
    return source, execute(RECOVER, config, source, out_dir, where).artifact


@pytest.mark.parametrize("method", ["sparsegpt", "ast"])
def test_training_lowers_the_loss_and_keeps_the_pattern(
    sparsified: Sparsified, tmp_path: Path, method: str
) -> None:
    source, made = recover(sparsified, tmp_path / "out", method=method)
    sparsity = read_sparsity(made.path)
    assert sparsity is not None
    assert sparsity == read_sparsity(source.path)
    assert verify_directory(made.path).checked[0].found["sparsity"]["num_tensors"] == 21
    loss = made.details["curve"]["loss"]
    assert loss[-1] < loss[0]
    before, after = (read_masks(a.path / MASKS_FILE, sparsity.shapes) for a in (source, made))
    is_same = all(torch.equal(before[name], after[name]) for name in before)
    assert is_same is (method == "sparsegpt")
    assert (made.details["moved_share"] == 0) is is_same
    weights = load_file(made.path / WEIGHTS_FILE)
    assert set(weights) == set(load_file(source.path / WEIGHTS_FILE))
    for name, mask in after.items():
        assert weights[name][~mask].abs().max() == 0, name


@pytest.mark.parametrize("slorb", ["fixed", "trained"])
def test_the_branch_trains_only_when_asked(sparsified: Sparsified, tmp_path: Path, slorb: str) -> None:
    source, made = recover(sparsified, tmp_path / "out", start={"slorb": slorb}, method="ast")
    before, after = read_adapter(source.path), read_adapter(made.path)
    assert set(before) == set(after)
    same = [
        torch.equal(before[n].up, after[n].up) and torch.equal(before[n].down, after[n].down) for n in before
    ]
    assert all(same) if slorb == "fixed" else not any(same)
    assert made.details["adapter_parameters"] == sum(branch.num_parameters for branch in after.values())


def test_the_losses_that_the_recipe_names_are_trained_on(sparsified: Sparsified, tmp_path: Path) -> None:
    losses = {"loss": "reverse-kl", "top_k": 100, "hidden_state_loss": "mse", "layer_pairs": ((1, 1),)}
    _, made = recover(sparsified, tmp_path / "out", losses=losses, kl_weight=0.5)
    assert made.details["loss"] == (
        "0.5 reverse KL on the teacher's top 100 tokens + 0.5 cross-entropy "
        "+ mse on hidden states (teacher:student 1:1) + mse on embeddings, mean over tokens"
    )


def test_states_are_not_compared_unless_the_recipe_says_so() -> None:
    distill = Distill(layer_pairs=((1, 1),))
    found = RecoverStageConfig(distill=distill, sparsify=Sparsify()).training()
    assert (found.hidden_state_loss, found.embedding_loss, found.layer_pairs) == ("off", "auto", None)
    assert (found.kl_weight, found.temperature) == (0.67, 2.0)


def test_both_models_are_loaded_as_far_as_they_are_trusted(
    sparsified: Sparsified, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted = []

    def load(*_arguments: Any, trust_remote_code: bool = False, **keywords: Any) -> Any:
        trusted.append(trust_remote_code)
        return load_model(*_arguments, trust_remote_code=trust_remote_code, **keywords)

    monkeypatch.setattr("compressor.distillation.training.load_model", load)
    recover(sparsified, tmp_path / "out", trust_remote_code=True)
    assert trusted == [True, True]


def test_plain_distillation_of_a_sparse_student_is_refused(sparsified: Sparsified, tmp_path: Path) -> None:
    config = Distill(data=str(sparsified.text), tokens=64, context_length=32)
    student, where = sparsified.make(method="wanda"), context(teacher=artifact_of(sparsified.dense))
    with pytest.raises(UsageError, match="overwrite the zeros"):
        execute(DISTILL, config, student, tmp_path / "out", where)


def test_a_dense_student_cannot_recover(sparsified: Sparsified, tmp_path: Path) -> None:
    config = RecoverStageConfig(distill=Distill(data=str(sparsified.text)), sparsify=Sparsify())
    dense = artifact_of(sparsified.dense)
    with pytest.raises(UsageError, match="needs a sparsified checkpoint"):
        execute(RECOVER, config, dense, tmp_path / "out", context(teacher=dense))


def test_the_schedule_scales_to_the_runs_length() -> None:
    assert moving_schedule(Sparsify(), 40_000) == (10, 10_000)
    assert moving_schedule(Sparsify(), 200) == (5, 50)
    assert moving_schedule(Sparsify(), 3) == (1, 1)
    assert moving_schedule(Sparsify(mask_interval=7, decay_ramp_steps=9), 200) == (7, 9)
