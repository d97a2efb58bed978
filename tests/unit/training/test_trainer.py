"""The training core: activations in bfloat16, exact resume, checkpoints of the plain student."""

from __future__ import annotations

import shutil
import struct
import time
from collections import defaultdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboardX.proto.event_pb2 import Event
from torch.distributed.checkpoint.filesystem import FileSystemReader
from transformers import TrainerState

from compressor.core.console import Console
from compressor.core.errors import DependencyError, UsageError, VerificationError
from compressor.data.mixing import WindowStream
from compressor.distillation.module import DistillationModule
from compressor.distillation.training import place_, schedule
from compressor.recipe.recipe import Distill
from compressor.training.callbacks import Watch, reporters
from compressor.training.checkpoints import last_complete_checkpoint
from compressor.training.config import TrainingConfig, TrainingLog
from compressor.training.extension import TrainingExtension
from compressor.training.trainer import train
from tests.short_training import assert_equal_states, full_state, make_config, stream_of
from tests.tiny_models import make_model

SEQ_LEN = 16


def make_data(directory: Path, *, num_domains: int = 1) -> WindowStream:
    """A stream of 20 windows of random tokens per domain."""
    random = (np.random.default_rng(domain).integers(0, 320, 20 * SEQ_LEN) for domain in range(num_domains))
    return stream_of(directory, *random, seq_len=SEQ_LEN)


def make_module(*, tied: bool = True) -> DistillationModule:
    student = make_model(tie_word_embeddings=tied, seed=1, hidden_size=32)
    student.requires_grad_(requires_grad=True).train()
    return DistillationModule(student, make_model(seed=2))


def run(
    module: DistillationModule, directory: Path, *, num_domains: int = 1, extensions: Any = (), **changes: Any
) -> TrainingLog:
    stream = make_data(directory, num_domains=num_domains)
    return train(module, stream, make_config(**changes), directory, Console(), extensions=extensions)


@pytest.mark.parametrize("tied", [True, False])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, tied: bool) -> None:
    whole, resumed = make_module(tied=tied), make_module(tied=tied)
    log = run(whole, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-6")
    data = make_data(tmp_path)
    assert train(resumed, data, make_config(), tmp_path, Console()) == log
    assert data.drawn == [12]
    assert_equal_states(whole.student, resumed.student)


def test_checkpoints_hold_what_is_trained_and_the_optimizer(tmp_path: Path) -> None:
    module = make_module()
    run(module, tmp_path)
    saved = FileSystemReader(tmp_path / "checkpoints" / "checkpoint-6").read_metadata().state_dict_metadata
    names = {name for name, _ in module.named_parameters()}
    moments = {f"optimizer/{name}/{kept}" for name in names for kept in ("exp_avg", "exp_avg_sq", "step")}
    assert set(saved) == names | moments


@pytest.mark.parametrize("bf16", [True, False])
def test_activations_are_in_the_autocast_dtype(tmp_path: Path, bf16: bool) -> None:
    module = make_module()
    seen: set[torch.dtype] = set()
    layer = module.student.model.layers[0].mlp.down_proj
    layer.register_forward_hook(lambda _module, _args, output: seen.add(output.dtype))
    run(module, tmp_path, bf16=bf16)
    assert seen == {torch.bfloat16 if bf16 else torch.float32}
    assert {parameter.dtype for parameter in module.student.parameters()} == {torch.float32}


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    log = run(make_module(), tmp_path, max_steps=60, checkpoint_steps=10, learning_rate=5e-3)
    assert log.loss[-1] < 0.7 * log.loss[0]
    assert log.steps == (10, 20, 30, 40, 50, 60)


def test_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    """Gradients say it; Adam hides their scale, and magnifies the rounding of those near zero."""
    states, logs = [], []
    for name, micro in (("one", 4), ("four", 1)):
        module = make_module()
        logs.append(run(module, tmp_path / name, batch_size=4, micro_batch_size=micro))
        states.append(full_state(module.student))
    assert logs[0].grad_norm == pytest.approx(logs[1].grad_norm, rel=1e-3)
    assert logs[0].loss == pytest.approx(logs[1].loss, rel=1e-3)
    for name, tensor in states[0].items():
        assert (tensor - states[1][name]).abs().mean() < 2e-5, name


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("model.layers.1.mlp.down_proj.weight", "output of student.model.layers.1.mlp.down_proj"),
        ("model.norm.weight", "output of student.model.norm"),
    ],
)
def test_a_non_finite_loss_stops_with_step_position_and_layer(
    tmp_path: Path, parameter: str, layer: str
) -> None:
    module = make_module()

    class Break(TrainingExtension):
        def after_step(self, step: int) -> None:
            if step == 4:
                with torch.no_grad():
                    module.student.get_parameter(parameter)[0] = float("inf")

    with pytest.raises(VerificationError, match="optimizer step 5, after window 8") as caught:
        run(module, tmp_path, extensions=[Break()])
    assert layer in str(caught.value.where)
    last = last_complete_checkpoint(tmp_path / "checkpoints", Console())
    assert last is not None
    assert last.name == "checkpoint-4"


def test_a_non_finite_gradient_alone_stops_too(tmp_path: Path) -> None:
    module = make_module()
    weight = module.student.get_parameter("model.layers.0.mlp.up_proj.weight")
    weight.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(VerificationError, match="optimizer step 1, after window 0") as caught:
        run(module, tmp_path)
    assert "gradient of student.model.layers.0.mlp.up_proj.weight" in str(caught.value.where)


def test_the_loss_of_every_domain_is_logged_and_weighs_up_to_the_whole(tmp_path: Path) -> None:
    log = run(make_module(), tmp_path, num_domains=2, max_steps=4, checkpoint_steps=2, batch_size=4)
    assert set(log.domain_loss) == {"d0", "d1"}
    for number, loss in enumerate(log.loss):
        # Both domains have equal weights and a step of four windows takes two of each.
        halves = [log.domain_loss[name][number] for name in ("d0", "d1")]
        assert sum(half for half in halves if half is not None) / 2 == pytest.approx(loss, rel=1e-2)


def test_the_display_shows_every_domains_loss_where_there_are_several() -> None:
    notes: list[str] = []

    def tick(note: str, *, done: int) -> None:
        notes.append(f"step {done}, {note}")

    watch = Watch(tick)
    entry = {"loss": 2.0, "grad_norm": 1.5, "tokens_per_s": 1000.0, "seconds_left": 61.0}
    for domains in ({"loss/web": 2.0}, {"loss/web": 1.5, "loss/code": 2.5}):
        state = TrainerState(global_step=3, max_steps=9, log_history=[{**entry, **domains}])
        watch.on_log(None, state, None)
        watch.on_step_end(None, state, None)
    speed = "1,000 tokens/s, 0:01:01 left"
    assert notes == [
        f"step 3, loss 2.0000, grad norm 1.50, {speed}",
        f"step 3, loss 2.0000, grad norm 1.50, web 1.5000, code 2.5000, {speed}",
    ]


def curves_in(directory: Path) -> dict[str, dict[int, float]]:
    """By name and step what an event file holds: length, checksum, event, checksum, for each event."""
    (file,) = directory.glob("events*")
    rest, found = file.read_bytes(), defaultdict[str, dict[int, float]](dict)
    while rest:
        (length,) = struct.unpack_from("<Q", rest)
        event = Event.FromString(rest[12 : 12 + length])
        for value in event.summary.value:
            found[value.tag][event.step] = value.simple_value
        rest = rest[16 + length :]
    return dict(found)


def test_curves_go_to_tensorboard(tmp_path: Path) -> None:
    log = run(make_module(), tmp_path, report_to=("tensorboard",))
    curves = curves_in(tmp_path / "tensorboard")
    assert {"train/tokens_per_s", "train/seconds_left", "train/loss/d0"} <= set(curves)
    for name, expected in (("loss", log.loss), ("grad_norm", log.grad_norm)):
        assert list(curves[f"train/{name}"]) == [2, 4, 6]
        assert list(curves[f"train/{name}"].values()) == pytest.approx(expected, rel=1e-6), name


def test_a_clock_set_back_does_not_hold_the_training_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(make_module(), tmp_path / "undisturbed", report_to=("tensorboard",))
    looks, two_months = count(), 60 * 86_400.0
    monkeypatch.setattr(time, "time", lambda: 4e9 - next(looks) * two_months)
    assert run(make_module(), tmp_path / "back", report_to=("tensorboard",)).loss == expected.loss
    assert len(curves_in(tmp_path / "back" / "tensorboard")["train/loss"]) == 3


def test_a_disk_that_is_full_for_the_curves_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = partial(open, "/dev/full", "wb")
    monkeypatch.setattr("tensorboardX.record_writer.open_file", lambda _path: full())
    with pytest.raises(OSError, match="No space left"):
        run(make_module(), tmp_path, report_to=("tensorboard",))


def test_a_missing_reporter_is_named(tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match="wandb is not installed"):
        reporters(("wandb",), tmp_path)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_activation_checkpointing_changes_no_number(tmp_path: Path, checkpointing: bool) -> None:
    module = make_module()
    place_(module, Distill(activation_checkpointing=checkpointing), make_config(), "cpu")
    log = run(module, tmp_path)
    expected = run(make_module(), tmp_path / "plain")
    assert log.loss == expected.loss
    assert log.grad_norm == pytest.approx(expected.grad_norm, rel=1e-6)


def plan(**fields: int) -> TrainingConfig:
    return schedule(Distill(**fields), seed=0, device="cpu", dtype="bfloat16")


def test_schedule_keeps_the_published_batch_and_the_shortest_run() -> None:
    published = plan(tokens=1_888_000_000, context_length=4096)
    assert (published.max_steps, published.batch_size) == (400, 1152)
    short = plan(tokens=100_000, context_length=256)
    assert (short.max_steps, short.batch_size) == (390, 1)
    assert short.warmup_steps == 39


@pytest.mark.parametrize("processes", [1, 3, 8])
def test_batch_and_steps_do_not_depend_on_the_processes(
    monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """1,098 sequences per step on eight GPUs: the last forward pass of some processes is padding."""
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    found = plan(tokens=1_800_000_000, micro_batch_size=4)
    assert (found.batch_size, found.max_steps) == (1098, 400)
    assert 0 <= found.micro_batch_size * found.accumulation_steps * processes - 1098 < processes * 4


def test_a_budget_below_one_sequence_is_refused() -> None:
    with pytest.raises(UsageError, match="does not fill one training"):
        plan(tokens=100, context_length=256)
