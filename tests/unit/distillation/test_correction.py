"""Teacher correction: published settings, training beside the student, resume, and a plain checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.core.console import Console
from compressor.core.errors import UsageError
from compressor.distillation.correct_stage import (
    CORRECT,
    CorrectAlongside,
    correction_settings,
    require_alongside,
)
from compressor.distillation.criterion import LossConfig
from compressor.distillation.module import DistillationModule
from compressor.distillation.training import flops_of_training, schedule
from compressor.models.load import load_model
from compressor.recipe.recipe import Correction, Distill
from compressor.runs.stage import execute
from compressor.training.trainer import train
from tests.short_training import assert_equal_states, full_state, make_config, stream_of
from tests.tiny_models import make_model, make_tokenizer, save_checkpoint
from tests.unit.distillation.test_stage import as_source, make_context

SEQ_LEN, STEPS = 8, 4
WHERE = {"seed": 0, "device": "cpu", "dtype": "float32"}


def run_training(module: DistillationModule, directory: Path, *extensions: Any, **changes: Any) -> Any:
    """Train into a directory, from the first window of a stream of its own."""
    config = make_config(**{"max_steps": STEPS, "micro_batch_size": 1, "warmup_steps": 0, **changes})
    stream = stream_of(directory, np.random.default_rng(0).integers(0, 320, 12 * SEQ_LEN), seq_len=SEQ_LEN)
    return train(module, stream, config, directory, Console(), extensions=extensions)


def make_pair() -> tuple[DistillationModule, CorrectAlongside]:
    student = make_model(seed=1, hidden_size=32, num_hidden_layers=2).requires_grad_(requires_grad=True)
    teacher = make_model(seed=2, num_hidden_layers=2)
    extension = CorrectAlongside(teacher, learning_rate=2e-4)
    return DistillationModule(student.train(), teacher, corrects_teacher=True), extension


def test_the_published_settings() -> None:
    config = Distill(tokens=1_888_000_000, correction=Correction(mode="first"))
    distillation, correction = schedule(config, **WHERE), correction_settings(config, **WHERE)
    assert correction.learning_rate == pytest.approx(distillation.learning_rate / 5)
    assert correction.warmup_steps == 40  # a tenth of 400 steps
    assert correction.batch_size == distillation.batch_size == 1152
    floors = [plan.learning_rate * plan.min_learning_rate_ratio for plan in (distillation, correction)]
    assert floors[0] == pytest.approx(floors[1])
    long = Distill(
        tokens=1_888_000_000, correction=Correction(mode="first", tokens=100_000_000_000, learning_rate=1e-6)
    )
    plan = correction_settings(long, **WHERE)
    assert (plan.warmup_steps, plan.batch_size, plan.learning_rate) == (120, 1152, 1e-6)
    assert plan.min_learning_rate_ratio == 1


def test_alongside_resumes_to_the_same_student_and_teacher(tmp_path: Path) -> None:
    whole, extension = make_pair()
    before = {name: tensor.clone() for name, tensor in full_state(whole.teacher).items()}
    log = run_training(whole, tmp_path / "run", extension)
    assert all(not torch.equal(before[name], tensor) for name, tensor in full_state(whole.teacher).items())
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"checkpoint-{STEPS}")
    resumed, restored = make_pair()
    assert run_training(resumed, tmp_path / "run", restored) == log
    assert_equal_states(whole.teacher, resumed.teacher)
    assert_equal_states(whole.student, resumed.student)


def test_alongside_steps_the_teacher_as_training_it_alone_would(tmp_path: Path) -> None:
    """One step: the same data, learning rate and clipping, with and without a student."""
    module, extension = make_pair()
    run_training(module, tmp_path / "beside", extension, max_steps=1, checkpoint_steps=1)
    teacher = make_model(seed=2, num_hidden_layers=2).requires_grad_(requires_grad=True).train()
    alone = DistillationModule(teacher, None, LossConfig(kl_weight=0))
    run_training(alone, tmp_path / "alone", max_steps=1, checkpoint_steps=1, learning_rate=2e-4)
    torch.testing.assert_close(full_state(module.teacher.model), full_state(teacher), rtol=1e-5, atol=1e-7)


def test_a_trained_teacher_costs_as_many_passes_as_a_student(tmp_path: Path) -> None:
    teacher = save_checkpoint(tmp_path / "teacher", make_model(seed=2))
    student = save_checkpoint(tmp_path / "student", make_model(hidden_size=32))
    alone = [flops_of_training(None, model, 64) for model in (teacher, student)]
    assert flops_of_training(teacher, student, 64) == alone[0] / 3 + alone[1]
    assert flops_of_training(teacher, student, 64, trains_teacher=True) == sum(alone)


def test_alongside_has_no_budget_of_its_own() -> None:
    require_alongside(Distill(correction=Correction(mode="alongside")))
    with pytest.raises(UsageError, match="budget and warm-up"):
        require_alongside(Distill(correction=Correction(mode="alongside", tokens=1000)))
    with pytest.raises(UsageError, match="not trained meanwhile"):
        require_alongside(Distill(correction=Correction(mode="alongside"), teacher_logits="logits"))


def test_the_stage_writes_a_better_teacher(tmp_path: Path) -> None:
    source = as_source(save_checkpoint(tmp_path / "teacher", make_model(seed=2, num_hidden_layers=2)))
    (tmp_path / "text.txt").write_text("the north wind and the sun argued about who was stronger\n" * 20)
    config = Distill(
        data=str(tmp_path / "text.txt"),
        tokens=16 * 12,
        context_length=16,
        batch_size=2,
        save_steps=5,
        correction=Correction(mode="first", learning_rate=2e-3),
    )
    artifact = execute(CORRECT, config, source, tmp_path / "corrected", make_context(None)).artifact
    ids = torch.tensor([make_tokenizer()("the sun argued about the wind").input_ids])
    before, after = (
        load_model(path, dtype="float32", device="cpu")(ids, labels=ids).loss
        for path in (source.path, artifact.path)
    )
    assert after < before
    assert artifact.details["schedule"]["max_steps"] == 6
    assert {path.name for path in artifact.path.iterdir()} >= {"model.safetensors", "tokenizer.json"}
    assert not (artifact.path / "checkpoints").exists()


def test_a_projection_resumes_to_the_same_weights(tmp_path: Path) -> None:
    def make() -> DistillationModule:
        student = make_model(seed=1, hidden_size=32, num_hidden_layers=2).requires_grad_(requires_grad=True)
        loss = LossConfig(intermediate="cosine", layer_pairs=((0, 0),))
        return DistillationModule(student.train(), make_model(seed=2, num_hidden_layers=2), loss)

    uninterrupted, resumed = make(), make()
    run_training(uninterrupted, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"checkpoint-{STEPS}")
    run_training(resumed, tmp_path / "run")
    assert_equal_states(uninterrupted.projection, resumed.projection)
