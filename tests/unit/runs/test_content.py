"""What decides a stage's fingerprint: the fields that change its bytes, and no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from compressor.core.console import Console
from compressor.distillation import training
from compressor.distillation.correct_stage import CORRECT
from compressor.distillation.distill_stage import DISTILL
from compressor.distillation.generate_stage import GENERATE
from compressor.distillation.logits_stage import LOGITS
from compressor.models.source import open_checkpoint, resolve_source
from compressor.recipe.recipe import Calibration, Recipe, Section, load_recipe
from compressor.repair.reconstruct_stage import RECONSTRUCT, ReconstructStageConfig
from compressor.runs.stage import Stage, StageContext, execute
from compressor.sparsity.sparse_finetune import RECOVER, RecoverStageConfig
from compressor.sparsity.sparsify_stage import SPARSIFY, SparsifyStageConfig
from tests.tiny_models import make_model, save_checkpoint

COURSE: dict[str, Any] = {
    "distill.save_steps": 7,
    "distill.report_to": ["wandb"],
    "distill.activation_checkpointing": True,
    "distill.compile": "on",
}
TEXT: dict[str, Any] = {
    "distill.tokens": 12_345_678,
    "distill.context_length": 512,
    "distill.batch_size": 6,
    "distill.intra_document_masking": True,
    "distill.domains": [{"name": "one", "data": "an/id"}],
}
STEPS: dict[str, Any] = {
    "distill.learning_rate": 0.5,
    "distill.warmup_steps": 3,
    "distill.warmup_ratio": 0.5,
}
TOP_K = {"distill.top_k": 9}
FOLLOWED: dict[str, Any] = {
    "distill.loss": "reverse-kl",
    "distill.kl_weighting": "entropy",
    "distill.hidden_state_loss": "mse",
    "distill.embedding_loss": "mse",
    "distill.layer_pairs": [[1, 1]],
}
OWN: dict[str, Any] = {
    "distill.kl_weight": 0.5,
    "distill.temperature": 3.0,
    "distill.teacher_logits": "logits",
}
LOSS: dict[str, Any] = FOLLOWED | OWN
ONE_SHOT: dict[str, Any] = {"sparsify.block_size": 64, "sparsify.skip": ["*"], "sparsify.pattern": "2:8"}
RECOVERY: dict[str, Any] = {
    "sparsify.tokens": 99,
    "sparsify.learning_rate": 0.5,
    "sparsify.kl_weight": 0.5,
    "sparsify.temperature": 3.0,
    "sparsify.mask_interval": 3,
}
SAMPLING: dict[str, Any] = {"distill.generate": {"temperature": 0.5}}
WEIGHT: dict[str, Any] = {"distill.generate": {"weight": 2.0}}
CORRECTION: dict[str, Any] = {"distill.correction": {"tokens": 99}}
DYNAMIC: dict[str, Any] = {"distill.dynamic_batches": {"variant": "clipped"}}
RECOVERED: dict[str, Any] = RECOVERY | FOLLOWED | TOP_K | DYNAMIC | WEIGHT


def config_of(stage: Stage[Any], recipe: Recipe) -> Section:
    sections: dict[str, Section] = {
        "generate": recipe.distill.generate,
        "sparsify": SparsifyStageConfig(sparsify=recipe.sparsify, calibration=recipe.calibration),
        "recover": RecoverStageConfig(distill=recipe.distill, sparsify=recipe.sparsify),
    }
    return sections.get(stage.name, recipe.distill)


@pytest.mark.parametrize(
    ("stage", "decide", "do_not"),
    [
        (DISTILL, TEXT | STEPS | LOSS | TOP_K | DYNAMIC, COURSE),
        (CORRECT, TEXT | STEPS | CORRECTION, COURSE | LOSS | TOP_K | DYNAMIC | SAMPLING),
        (LOGITS, TEXT | TOP_K, COURSE | STEPS | LOSS | CORRECTION),
        (GENERATE, SAMPLING, WEIGHT),
        (SPARSIFY, ONE_SHOT, RECOVERY | {"sparsify.mask_decay": 0.5}),
        (RECOVER, TEXT | STEPS | RECOVERED, COURSE | OWN | SAMPLING | ONE_SHOT),
    ],
    ids=lambda value: value.name if isinstance(value, Stage) else "",
)
def test_what_changes_bytes_is_in_the_fingerprint_and_nothing_else(
    stage: Stage[Any], decide: dict[str, Any], do_not: dict[str, Any]
) -> None:
    base = stage.content(config_of(stage, load_recipe(None, {"model": "m"})))
    for changes, changed in ((decide, True), (do_not, False)):
        for name, value in changes.items():
            recipe = load_recipe(None, {"model": "m", name: value})
            assert (stage.content(config_of(stage, recipe)) != base) is changed, name


@pytest.mark.parametrize("stage", [DISTILL, CORRECT, LOGITS, RECOVER], ids=lambda stage: stage.name)
def test_options_that_came_later_change_nothing_until_they_are_used(stage: Stage[Any]) -> None:
    """What was made before there were such options is what is asked for without them."""
    found = json.dumps(stage.content(config_of(stage, load_recipe(None, {"model": "m"}))))
    assert not [name for name in ("top_k_tail", "kl_weighting", "warmup_ratio") if name in found]


def test_how_branches_start_counts_only_where_there_are_some() -> None:
    def content(slorb: str) -> Any:
        return SPARSIFY.content(
            config_of(SPARSIFY, load_recipe(None, {"model": "m", "sparsify.slorb": slorb}))
        )

    assert content("fixed")["branch_start"] == "least squares"
    assert set(content("off")) == {"sparsify", "calibration"}


def test_gradient_steps_count_only_where_there_are_some() -> None:
    calibration = Calibration()
    plain, stepped = (
        RECONSTRUCT.content(ReconstructStageConfig(calibration=calibration, steps=steps)) for steps in (0, 5)
    )
    assert set(stepped) - set(plain) == {"steps"}


class Killed(BaseException):
    """Stands in for a kill."""


def test_a_training_continues_with_less_memory_and_other_checkpoints(
    tmp_path: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The course of a training may change after an error; its weights are those of an undisturbed one."""
    student, teacher = (
        open_checkpoint(resolve_source(str(path)), tmp_path / "scratch", dtype="float32")
        for path in (
            save_checkpoint(tmp_path / "student", make_model(seed=1)),
            save_checkpoint(tmp_path / "teacher", make_model(seed=2)),
        )
    )
    context = StageContext(console=Console(), seed=0, device="cpu", dtype="float32", teacher=teacher)
    given = {"distill.data": str(tiny_text), "distill.tokens": 512, "distill.context_length": 32}
    given |= {"distill.batch_size": 2, "distill.save_steps": 3, "distill.report_to": []}
    config = load_recipe(None, {"model": "m", **given}).distill
    execute(DISTILL, config, student, tmp_path / "whole", context)

    def kill(*_arguments: Any, **_more: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_trained", kill)
        with pytest.raises(Killed):
            execute(DISTILL, config, student, tmp_path / "killed", context)
    shutil.rmtree(tmp_path / "killed.partial" / "checkpoints" / "checkpoint-8")
    course = {"activation_checkpointing": True, "save_steps": 5}
    resumed = execute(DISTILL, config.model_copy(update=course), student, tmp_path / "killed", context)

    assert not resumed.skipped
    whole, killed = (tmp_path / name / "model.safetensors" for name in ("whole", "killed"))
    assert killed.read_bytes() == whole.read_bytes()
