"""The annealed optimizer against its formulas, the sign of the decay, and exact resume of both trainings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.core.console import Console
from compressor.core.errors import UnsupportedError
from compressor.distillation.criterion import LossConfig
from compressor.distillation.module import DistillationModule
from compressor.models.sparse.layers import SparseLinear, install_sparse_layers_
from compressor.models.sparse.masks import check_pattern, keep_mask
from compressor.models.sparse.pattern import Pattern
from compressor.sparsity.adaptive import EPSILON, AnnealedAdamW, FixedMasks, MovingMasks
from compressor.training.config import TrainingConfig, TrainingLog
from compressor.training.trainer import train
from tests.short_training import assert_equal_states, full_state, make_config
from tests.tiny_models import make_model
from tests.unit.training.test_trainer import make_data

LR, DECAY, RAMP = 1e-2, 1e-1, 4


def sparse_layer() -> SparseLinear:
    linear = nn.Linear(8, 3, bias=False)
    return SparseLinear(linear, keep_mask=keep_mask(linear.weight.abs()), straight_through=True)


def optimizer_of(layer: SparseLinear, *, lr: float = LR) -> AnnealedAdamW:
    return AnnealedAdamW([], [layer], lr=lr, mask_decay=DECAY, ramp_steps=RAMP)


def test_with_no_gradient_a_pruned_weight_shrinks_and_a_kept_one_does_not_move() -> None:
    layer = sparse_layer()
    # A first step is 10 lr long, by the first moment's correction: short enough not to cross zero.
    optimizer, before = optimizer_of(layer, lr=1e-5), layer.weight.detach().clone()
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step()
    after, mask = layer.weight.detach(), layer.keep_mask
    assert mask is not None
    assert torch.equal(after[mask], before[mask])
    assert (after[~mask].abs() < before[~mask].abs()).all()
    assert torch.equal(after[~mask].sign(), before[~mask].sign())


def test_updates_equal_the_formulas() -> None:
    layer = sparse_layer()
    optimizer = optimizer_of(layer)
    weight = layer.weight.detach().double().clone()
    mu, v = torch.zeros_like(weight), torch.zeros_like(weight)
    assert layer.keep_mask is not None
    dropped = (~layer.keep_mask).double()
    for step in range(1, 8):
        grad = torch.randn_like(layer.weight)
        layer.weight.grad = grad.clone()
        optimizer.step()
        decay = DECAY / RAMP * min(step, RAMP)
        mu = 0.9 * mu + 0.1 * grad.double()
        u = mu + decay * dropped * weight
        v = 0.95 * v + 0.05 * u**2
        weight = weight - LR * (u / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + EPSILON)
        torch.testing.assert_close(layer.weight.double(), weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(optimizer.state[layer.weight]["mu"].double(), mu, rtol=1e-5, atol=1e-6)


def test_other_parameters_are_plain_adamws() -> None:
    ours, theirs = (nn.Parameter(torch.arange(6.0).sin()) for _ in range(2))
    optimizer = AnnealedAdamW([ours], [], lr=LR, mask_decay=DECAY, ramp_steps=RAMP)
    reference = torch.optim.AdamW([theirs], lr=LR, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(5):
        grad = torch.randn(6)
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        optimizer.step()
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_the_annealing_step_is_state() -> None:
    layer = sparse_layer()
    optimizer = optimizer_of(layer)
    layer.weight.grad = torch.ones_like(layer.weight)
    for _ in range(3):
        optimizer.step()
    again = optimizer_of(layer)
    again.load_state_dict(optimizer.state_dict())
    assert [group["annealing_step"] for group in again.param_groups] == [3]
    assert again.decay_at(3) == pytest.approx(DECAY * 3 / RAMP)


@pytest.mark.parametrize("straight_through", [True, False])
def test_gradients_pass_straight_through_or_are_masked(straight_through: bool) -> None:
    linear = nn.Linear(8, 3).double()
    mask = keep_mask(linear.weight.abs())
    layer = SparseLinear(linear, keep_mask=mask, straight_through=straight_through)
    inputs = torch.randn(5, 8).double()
    layer(inputs).square().sum().backward()
    dense = (linear.weight.detach() * mask).requires_grad_()
    (inputs @ dense.T + linear.bias).square().sum().backward()
    assert dense.grad is not None
    torch.testing.assert_close(linear.weight.grad, dense.grad if straight_through else dense.grad * mask)


def make_student(*, moving: bool) -> tuple[DistillationModule, FixedMasks]:
    student = make_model(seed=1, hidden_size=32)
    names = [name for name, p in student.named_parameters() if "proj" in name and p.dim() == 2]
    masks = {name: keep_mask(student.get_parameter(name).abs()) for name in names}
    for name, mask in masks.items():
        student.get_parameter(name).data.masked_fill_(~mask, 0)
    layers = install_sparse_layers_(student, masks=masks, straight_through=moving)
    student.requires_grad_(requires_grad=True).train()
    module = DistillationModule(student, make_model(seed=2), LossConfig(temperature=2.0, kl_weight=0.67))
    if not moving:
        return module, FixedMasks(layers)
    return module, MovingMasks(layers, pattern=Pattern(), interval=4, mask_decay=0.1, ramp_steps=3)


def run_training(
    module: DistillationModule, config: TrainingConfig, directory: Path, masks: FixedMasks
) -> TrainingLog:
    return train(module, make_data(directory), config, directory, Console(), extensions=[masks])


@pytest.mark.parametrize("moving", [True, False])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, moving: bool) -> None:
    """The checkpoint resumed from lies between two selections of the mask."""
    config = make_config(max_steps=12, learning_rate=5e-3)
    whole, masks = make_student(moving=moving)
    log = run_training(whole, config, tmp_path / "run", masks)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-12")
    resumed, restored = make_student(moving=moving)
    assert run_training(resumed, config, tmp_path / "run", restored) == log
    assert_equal_states(whole.student, resumed.student)
    torch.testing.assert_close(masks.masks(), restored.masks())


@pytest.mark.parametrize("moving", [True, False])
def test_fixed_masks_never_move_and_moving_ones_do(tmp_path: Path, moving: bool) -> None:
    module, masks = make_student(moving=moving)
    before = {name: mask.clone() for name, mask in masks.masks().items()}
    run_training(module, make_config(max_steps=12, learning_rate=5e-3), tmp_path / "run", masks)
    changed = any(not torch.equal(before[name], mask) for name, mask in masks.masks().items())
    assert changed is moving
    masks.apply_()
    state = full_state(module.student)
    for name, mask in masks.masks().items():
        check_pattern(name, state[name], Pattern())
        assert state[name][~mask].abs().max() == 0


def test_a_weight_flattened_after_installation_is_refused() -> None:
    """Sharding comes after the masks: in the optimizer (ZeRO) or in the module (FSDP1)."""
    layer = sparse_layer()
    optimizer = optimizer_of(layer)
    flat = nn.Parameter(layer.weight.detach().flatten())
    flat.grad = torch.ones_like(flat)
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(UnsupportedError, match="flattened"):
        optimizer.step()
    layer.weight = flat
    moving = MovingMasks({"w": layer}, pattern=Pattern(), interval=1, mask_decay=0.0, ramp_steps=1)
    for masks in (FixedMasks({"w": layer}), moving):
        with pytest.raises(UnsupportedError, match="flattened"):
            masks.after_step(1)
