"""Losses against their definitions, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from compressor.distillation.chunked import TeacherLogits
from compressor.distillation.criterion import LogitsCriterion, LossConfig
from compressor.distillation.head import Head
from compressor.distillation.losses import (
    cosine_distance,
    cross_entropy_and_gradient,
    dynamic_weight,
    forward_kl,
    forward_kl_and_gradient,
    mean_squared_error,
    reverse_kl,
)

TOKENS, VOCAB = 5, 11


def logits(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(TOKENS, VOCAB, dtype=torch.float64, generator=generator)


def kl_by_hand(p: list[float], q: list[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def softmax_by_hand(row: list[float], temperature: float) -> list[float]:
    weights = [math.exp(value / temperature) for value in row]
    return [weight / math.fsum(weights) for weight in weights]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 1, 4, VOCAB, 1000])
def test_kl_in_both_directions_equals_the_definition(temperature: float, top_k: int | None) -> None:
    student, teacher = logits(0), logits(1)
    forward, backward = [], []
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        kept = sorted(range(VOCAB), key=lambda index: -theirs[index])[:top_k]
        p = softmax_by_hand([theirs[index] for index in kept], temperature)
        q = softmax_by_hand([ours[index] for index in kept], temperature)
        forward.append(kl_by_hand(p, q) * temperature**2)
        backward.append(kl_by_hand(q, p) * temperature**2)
    for name, expected in (("forward-kl", forward), ("reverse-kl", backward)):
        config = LossConfig(loss=name, temperature=temperature, top_k=top_k)
        labels, positions = torch.zeros(TOKENS, dtype=torch.int64), torch.arange(TOKENS)
        reference = TeacherLogits(hidden=teacher, head=Head(weight=torch.eye(VOCAB, dtype=torch.float64)))
        found, _ = LogitsCriterion(config=config, labels=labels, teacher=reference)(student, positions)
        assert found.tolist() == pytest.approx(expected, abs=1e-12), name


def test_kl_of_equal_distributions_is_zero() -> None:
    assert forward_kl(logits(0), logits(0) + 5).abs().max() < 1e-12
    assert reverse_kl(logits(0), logits(0) + 5).abs().max() < 1e-12


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_hand_written_gradients_equal_autograd(temperature: float) -> None:
    student, teacher, labels = logits(0).requires_grad_(), logits(1), torch.tensor([3, 0, 10, 2, 2])
    cases = (
        (
            forward_kl(student, teacher, temperature=temperature),
            forward_kl_and_gradient(student.detach(), teacher, temperature=temperature),
        ),
        (
            functional.cross_entropy(student, labels, reduction="none"),
            cross_entropy_and_gradient(student.detach(), labels),
        ),
    )
    for plain, (loss, gradient) in cases:
        torch.testing.assert_close(loss, plain.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(plain.sum(), student)[0])


def test_losses_leave_their_arguments_alone() -> None:
    student, teacher = logits(0), logits(1)
    forward_kl_and_gradient(student, teacher, temperature=2.0)
    cross_entropy_and_gradient(student, torch.zeros(TOKENS, dtype=torch.int64))
    assert torch.equal(student, logits(0))
    assert torch.equal(teacher, logits(1))


def test_half_precision_is_widened() -> None:
    student, teacher = logits(0).half(), logits(1).half()
    assert forward_kl(student, teacher).dtype == torch.float32
    torch.testing.assert_close(forward_kl(student, teacher), forward_kl(student.float(), teacher.float()))


def test_state_losses_equal_their_definitions() -> None:
    student, teacher = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [-2.0, 0.0]])
    assert cosine_distance(student, teacher).tolist() == pytest.approx([1 - 24 / 25, 2.0])
    assert mean_squared_error(student, teacher).tolist() == pytest.approx([1.0, 4.5])


def test_the_dynamic_weight_makes_both_losses_equal_and_is_a_constant() -> None:
    logits_loss = torch.tensor(6.0, requires_grad=True)
    state_loss = torch.tensor(1.5, requires_grad=True)
    total = logits_loss + dynamic_weight(logits_loss, state_loss) * state_loss
    assert total.item() == 12
    assert [g.item() for g in torch.autograd.grad(total, (logits_loss, state_loss))] == [1, 4]


def test_the_dynamic_weight_of_nothing_is_finite() -> None:
    zero = torch.zeros((), requires_grad=True)
    total = dynamic_weight(torch.tensor(2.0), zero) * zero
    assert total.item() == 0
