"""The training core: activations in bfloat16, exact resume, checkpoints of the plain student."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compressor.console import Console
from compressor.data.packing import PackedWindows
from compressor.distillation.module import DistillationModule
from compressor.distillation.stage import schedule
from compressor.errors import VerificationError
from compressor.recipe import Distill
from compressor.training.trainer import (
    COMPLETE_MARK,
    STUDENT_FILE,
    TrainingConfig,
    last_complete_checkpoint,
    student_state,
    train,
)
from tests.tiny_models import make_model

SEQ_LEN = 16


def make_config(**changes: Any) -> TrainingConfig:
    fields = {
        "max_steps": 6,
        "micro_batch_size": 2,
        "accumulation_steps": 1,
        "learning_rate": 1e-3,
        "min_learning_rate_ratio": 0.1,
        "warmup_steps": 1,
        "checkpoint_steps": 2,
        "seed": 0,
        "bf16": False,
        "use_cpu": True,
    }
    return TrainingConfig(**{**fields, **changes})


def make_data(path: Path, num_windows: int) -> PackedWindows:
    tokens = np.random.default_rng(0).integers(0, 320, 20 * SEQ_LEN).astype("<u4")
    path.write_bytes(tokens.tobytes())
    return PackedWindows(path, seq_len=SEQ_LEN, num_windows=num_windows, seed=0)


def make_module(*, tied: bool = True) -> DistillationModule:
    student = make_model(tie_word_embeddings=tied, seed=1, hidden_size=32)
    student.requires_grad_(requires_grad=True).train()
    return DistillationModule(student, make_model(seed=2))


def quiet() -> Console:
    return Console(quiet=True)


@pytest.mark.parametrize("tied", [True, False])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, tied: bool) -> None:
    data = make_data(tmp_path / "tokens", 12)
    whole = make_module(tied=tied)
    log = train(whole, data, make_config(), tmp_path / "whole", quiet())
    first = make_module(tied=tied)
    train(first, data, make_config(), tmp_path / "parts", quiet())
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "checkpoint-6")
    resumed = make_module(tied=tied)
    resumed_log = train(resumed, data, make_config(), tmp_path / "parts", quiet())
    for name, tensor in student_state(whole.student).items():
        assert torch.equal(tensor, student_state(resumed.student)[name]), name
    assert resumed_log == log


def test_an_unfinished_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    for step, complete in ((2, True), (4, False)):
        directory = tmp_path / f"checkpoint-{step}"
        directory.mkdir()
        if complete:
            (directory / COMPLETE_MARK).touch()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()


def test_checkpoints_hold_the_student_alone_under_its_own_names(tmp_path: Path) -> None:
    module = make_module()
    train(module, make_data(tmp_path / "tokens", 12), make_config(), tmp_path, quiet())
    saved = load_file(tmp_path / "checkpoints" / "checkpoint-6" / STUDENT_FILE)
    assert set(saved) == {name for name, _ in module.student.named_parameters()}
    assert torch.equal(saved["model.norm.weight"], module.student.model.norm.weight)


@pytest.mark.parametrize("bf16", [True, False])
def test_activations_are_in_the_autocast_dtype(tmp_path: Path, bf16: bool) -> None:
    module = make_module()
    seen: set[torch.dtype] = set()
    layer = module.student.model.layers[0].mlp.down_proj
    layer.register_forward_hook(lambda _module, _args, output: seen.add(output.dtype))
    train(module, make_data(tmp_path / "tokens", 12), make_config(bf16=bf16), tmp_path, quiet())
    assert seen == {torch.bfloat16 if bf16 else torch.float32}
    assert {parameter.dtype for parameter in module.student.parameters()} == {torch.float32}


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    config = make_config(max_steps=60, checkpoint_steps=10, learning_rate=5e-3)
    log = train(make_module(), make_data(tmp_path / "tokens", 120), config, tmp_path, quiet())
    assert log.loss[-1] < 0.7 * log.loss[0]
    assert log.steps == (10, 20, 30, 40, 50, 60)


def test_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    """Gradients say it; Adam hides their scale, and magnifies the rounding of those near zero."""
    data = make_data(tmp_path / "tokens", 24)
    states, logs = [], []
    for name, micro, accumulation in (("one", 4, 1), ("four", 1, 4)):
        module = make_module()
        config = make_config(micro_batch_size=micro, accumulation_steps=accumulation)
        logs.append(train(module, data, config, tmp_path / name, quiet()))
        states.append(student_state(module.student))
    assert logs[0].grad_norm == pytest.approx(logs[1].grad_norm, rel=1e-3)
    assert logs[0].loss == pytest.approx(logs[1].loss, rel=1e-3)
    for name, tensor in states[0].items():
        assert (tensor - states[1][name]).abs().mean() < 2e-5, name


def test_a_non_finite_loss_stops_with_step_and_position(tmp_path: Path) -> None:
    module = make_module()
    with torch.no_grad():
        module.student.model.norm.weight[0] = float("inf")
    with pytest.raises(VerificationError, match="optimizer step 1, after window 0"):
        train(module, make_data(tmp_path / "tokens", 12), make_config(), tmp_path, quiet())


def test_teacher_is_no_part_of_the_module() -> None:
    names = [name for name, _ in make_module().named_parameters()]
    assert all(name.startswith("student.") for name in names)


def test_schedule_keeps_the_published_batch_and_the_shortest_run() -> None:
    published = schedule(
        Distill(tokens=1_888_000_000, context_length=4096), seed=0, device="cpu", dtype="bfloat16"
    )
    assert published.micro_batch_size * published.accumulation_steps == 1152
    assert published.max_steps == 400
    short = schedule(Distill(tokens=100_000, context_length=256), seed=0, device="cpu", dtype="bfloat16")
    assert (short.max_steps, short.micro_batch_size * short.accumulation_steps) == (390, 1)
    assert short.warmup_steps == 39
