"""Losses are named in one table: one row and one function add one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compressor.choices.losses import LOSSES, STATE_LOSSES, Loss
from compressor.core.console import Console
from compressor.distillation.choice import choose_losses, describe
from compressor.distillation.criterion import LossConfig
from compressor.distillation.module import DistillationModule
from compressor.recipe.option import choices_of
from compressor.recipe.recipe import Distill
from compressor.training.trainer import train
from tests.short_training import make_config
from tests.tiny_models import make_model
from tests.unit.training.test_trainer import make_data


def total_variation(
    student_logits_TV: torch.Tensor, teacher_logits_TV: torch.Tensor, *, temperature: float
) -> torch.Tensor:
    """Half the sum of absolute differences of the probabilities."""
    q, p = ((logits / temperature).softmax(-1) for logits in (student_logits_TV, teacher_logits_TV))
    return (q - p).abs().sum(-1) / 2


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Loss:
    """Registered here and nowhere else."""
    row = Loss(
        name="toy",
        title="total variation",
        help="Half the summed differences of the probabilities.",
        place=f"{__name__}:total_variation",
    )
    monkeypatch.setattr(
        "compressor.choices.losses.resolve", lambda place: globals()[place.rpartition(":")[2]]
    )
    monkeypatch.setitem(LOSSES, row.name, row)
    return row


@pytest.mark.parametrize("top_k", [None, 8])
def test_a_row_is_a_loss_to_train_on(toy: Loss, tmp_path: Path, top_k: int | None) -> None:
    student, teacher = make_model(seed=1, hidden_size=32), make_model(seed=2)
    config = LossConfig(loss=toy.name, temperature=2.0, top_k=top_k)
    recipe = Distill(loss=toy.name, temperature=2.0, top_k=top_k, hidden_state_loss="off")
    assert choose_losses(recipe, num_teacher_layers=3, num_student_layers=3).loss == config
    module = DistillationModule(student.requires_grad_(requires_grad=True).train(), teacher, config)
    ids = torch.arange(32).view(2, 16)
    loss = module(ids)["loss"]
    ours, theirs = (model(ids).logits[:, :-1].flatten(0, 1).detach() for model in (student, teacher))
    if top_k is not None:
        theirs, kept = theirs.topk(top_k, dim=-1)
        ours = ours.gather(-1, kept)
    torch.testing.assert_close(loss.detach(), total_variation(ours, theirs, temperature=2.0).mean())

    stream = make_data(tmp_path)
    settings = make_config(max_steps=2, checkpoint_steps=1, learning_rate=1e-2, warmup_steps=0)
    log = train(module, stream, settings, tmp_path, Console())
    assert 0 < log.loss[1] <= 1
    assert describe(config).startswith("total variation on ")
    assert choices_of(Distill.model_fields["loss"])["toy"] == toy.help


@pytest.mark.parametrize("row", [*LOSSES.values(), *STATE_LOSSES.values()], ids=lambda row: row.name)
def test_every_row_names_a_function(row: Loss) -> None:
    assert callable(row.load())
    assert row.help.endswith(".")
