"""The chunked loss equals the plain one: values, gradients, dtypes, final transforms, ignored tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.nn import functional

from compressor.data.packing import IGNORED
from compressor.distillation.chunked import TeacherLogits, chunked_loss
from compressor.distillation.criterion import LogitsCriterion, LossConfig, StoredTop
from compressor.distillation.head import Head
from compressor.distillation.losses import forward_kl, reverse_kl
from tests.unit.distillation.gradients import assert_same_gradients

TOKENS, VOCAB, STUDENT, TEACHER = 37, 101, 16, 24
COUNTED = torch.tensor([position for position in range(TOKENS) if position not in (0, 4, 20, 36)])
cross_entropy = partial(functional.cross_entropy, ignore_index=IGNORED, reduction="none")
Plain = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def tensors(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((TOKENS, STUDENT), (VOCAB, STUDENT), (TOKENS, TEACHER), (VOCAB, TEACHER))
    made = [torch.randn(*shape, dtype=dtype, generator=generator) for shape in shapes]
    return (made[0].requires_grad_(), made[1].requires_grad_(), made[2], made[3])


def labels() -> torch.Tensor:
    drawn = torch.randint(0, VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(1))
    found = torch.full((TOKENS,), IGNORED)
    found[COUNTED] = drawn[COUNTED]
    return found


def over_top(top_k: int, student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both models' logits of the teacher's top-k tokens."""
    logits, ids = teacher.topk(top_k, dim=-1)
    return student.gather(-1, ids), logits


def by_entropy(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """EA-KD's weight as written in the paper, a constant."""
    entropies = [
        torch.distributions.Categorical(logits=logits.detach()).entropy() for logits in (teacher, student)
    ]
    return (entropies[0] + entropies[0] * entropies[1] / math.log(VOCAB)) / 2


CASES: dict[str, tuple[LossConfig, Plain]] = {
    "forward": (LossConfig(), lambda s, t, _: forward_kl(s, t)),
    "warm": (LossConfig(temperature=2.0), lambda s, t, _: forward_kl(s, t, temperature=2.0)),
    "reverse": (
        LossConfig(loss="reverse-kl", temperature=0.5),
        lambda s, t, _: reverse_kl(s, t, temperature=0.5),
    ),
    "top": (LossConfig(top_k=7), lambda s, t, _: forward_kl(*over_top(7, s, t))),
    "top and others": (
        LossConfig(top_k=7, top_k_tail="bucket"),
        lambda s, t, _: forward_kl(*with_others(7, s, t)),
    ),
    "by entropy": (
        LossConfig(kl_weight=0.5, kl_weighting="entropy"),
        lambda s, t, y: 0.5 * by_entropy(s, t) * forward_kl(s, t) + 0.5 * cross_entropy(s, y),
    ),
    "cross-entropy": (LossConfig(kl_weight=0.0), lambda s, _, y: cross_entropy(s, y)),
    "mix": (
        LossConfig(kl_weight=0.67, temperature=2.0),
        lambda s, t, y: 0.67 * forward_kl(s, t, temperature=2.0) + 0.33 * cross_entropy(s, y),
    ),
}


@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 3.0), (2.0, 5.0)])
@pytest.mark.parametrize("chunk_tokens", [1, 8, 100])
@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_autograd_on_full_logits(
    name: str, chunk_tokens: int, scale: float, softcap: float | None
) -> None:
    config, plain = CASES[name]
    student, weight, teacher, teacher_weight = tensors()
    transforms = {"scale": scale, "softcap": softcap}
    head, teacher_head = Head(weight=weight, **transforms), Head(weight=teacher_weight, **transforms)
    per_token = plain(head.logits(student), teacher_head.logits(teacher), labels())[COUNTED]
    criterion = LogitsCriterion(
        config=config, labels=labels(), teacher=TeacherLogits(hidden=teacher, head=teacher_head)
    )
    total, losses = chunked_loss(student, head, criterion, COUNTED, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(losses[COUNTED], per_token.detach())
    assert not losses.requires_grad
    assert losses.sum() == total
    assert losses[0] == losses[36] == 0
    assert_same_gradients(total / 3, per_token.sum() / 3, (student, weight), tolerance=1e-10)


def with_others(
    top_k: int, student: torch.Tensor, teacher: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities over the teacher's top-k tokens and one for the sum of all other probabilities."""
    ids = teacher.topk(top_k, dim=-1).indices
    found = []
    for logits in (student, teacher):
        chosen = logits.softmax(-1).gather(-1, ids)
        found.append(torch.cat([chosen, 1 - chosen.sum(-1, keepdim=True)], dim=-1).log())
    return found[0], found[1]


def top_of(logits: torch.Tensor, top_k: int) -> StoredTop:
    """What a store without rounding would hold."""
    logprobs, ids = logits.log_softmax(-1).topk(top_k, dim=-1)
    tail = None if top_k == VOCAB else (1 - logprobs.exp().sum(-1)).log()
    return StoredTop(ids=ids.int(), logprobs=logprobs, tail_logprobs=tail)


@pytest.mark.parametrize("chunk_tokens", [5, 100])
@pytest.mark.parametrize("loss", ["forward-kl", "reverse-kl"])
@pytest.mark.parametrize(("stored", "top_k"), [(9, None), (9, 4), (9, 9), (VOCAB, 9)])
def test_stored_logits_give_the_gradients_of_their_definition(
    stored: int, top_k: int | None, loss: str, chunk_tokens: int
) -> None:
    student, weight, teacher, teacher_weight = tensors()
    teacher_logits = teacher @ teacher_weight.T
    plain = {"forward-kl": forward_kl, "reverse-kl": reverse_kl}[loss]
    per_token = plain(*with_others(top_k or stored, student @ weight.T, teacher_logits))[COUNTED]
    config = LossConfig(loss=loss, top_k=top_k, top_k_tail="bucket" if top_k else "drop")
    criterion = LogitsCriterion(config=config, labels=labels(), teacher=top_of(teacher_logits, stored))
    total, losses = chunked_loss(student, Head(weight=weight), criterion, COUNTED, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(losses[COUNTED], per_token.detach())
    assert_same_gradients(total, per_token.sum(), (student, weight), tolerance=1e-9)


def test_all_tokens_stored_give_the_divergence_over_the_vocabulary() -> None:
    student, weight, teacher, teacher_weight = tensors()
    teacher_logits = teacher @ teacher_weight.T
    per_token = forward_kl(student @ weight.T, teacher_logits)[COUNTED]
    criterion = LogitsCriterion(config=LossConfig(), labels=labels(), teacher=top_of(teacher_logits, VOCAB))
    total, _ = chunked_loss(student, Head(weight=weight), criterion, COUNTED)
    assert_same_gradients(total, per_token.sum(), (student, weight), tolerance=1e-9)


def test_stored_logits_renormalise_over_fewer_tokens() -> None:
    student, weight, teacher, teacher_weight = tensors()
    teacher_logits = teacher @ teacher_weight.T
    config = LossConfig(loss="reverse-kl", top_k=5, temperature=2.0)
    criterion = LogitsCriterion(config=config, labels=labels(), teacher=top_of(teacher_logits, 9))
    total, losses = chunked_loss(student, Head(weight=weight), criterion, COUNTED)
    expected = reverse_kl(*over_top(5, student @ weight.T, teacher_logits), temperature=2.0)[COUNTED]
    torch.testing.assert_close(losses[COUNTED], expected.detach())
    assert_same_gradients(total, expected.sum(), (student, weight), tolerance=1e-10)


def test_no_counted_position_gives_zero_and_zero_gradients() -> None:
    student, weight, _, _ = tensors()
    criterion = LogitsCriterion(config=LossConfig(kl_weight=0), labels=torch.full((TOKENS,), IGNORED))
    total, losses = chunked_loss(student, Head(weight=weight), criterion, torch.zeros(0, dtype=torch.int64))
    gradients = torch.autograd.grad(total, (student, weight))
    assert total == 0
    assert losses.abs().max() == 0
    assert all(gradient.abs().max() == 0 for gradient in gradients)


def test_ignored_positions_may_hold_anything() -> None:
    student, weight, teacher, teacher_weight = tensors()
    reference = TeacherLogits(hidden=teacher, head=Head(weight=teacher_weight))
    criterion = LogitsCriterion(config=LossConfig(kl_weight=0.5), labels=labels(), teacher=reference)
    with torch.no_grad():
        student[4] = float("nan")
        teacher[20] = float("inf")
    total, _ = chunked_loss(student, Head(weight=weight), criterion, COUNTED, chunk_tokens=6)
    gradients = torch.autograd.grad(total, (student, weight))
    assert torch.isfinite(total)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert gradients[0][4].abs().max() == 0


def test_a_tied_head_gets_both_gradients() -> None:
    _, weight, teacher, teacher_weight = tensors()
    ids = torch.arange(TOKENS)
    plain = forward_kl(weight[ids].tanh() @ weight.T, teacher @ teacher_weight.T).sum()
    reference = TeacherLogits(hidden=teacher, head=Head(weight=teacher_weight))
    criterion = LogitsCriterion(config=LossConfig(), labels=ids, teacher=reference)
    total, _ = chunked_loss(weight[ids].tanh(), Head(weight=weight), criterion, ids, chunk_tokens=10)
    assert_same_gradients(total, plain, (weight,), tolerance=1e-10)


def test_autocast_runs_the_matrix_products_in_bfloat16() -> None:
    student, weight, teacher, teacher_weight = tensors(torch.float32)

    def loss(dtype: torch.dtype) -> torch.Tensor:
        reference = TeacherLogits(hidden=teacher, head=Head(weight=teacher_weight.to(dtype)))
        criterion = LogitsCriterion(config=LossConfig(), labels=labels(), teacher=reference)
        return chunked_loss(student, Head(weight=weight), criterion, COUNTED)[0]

    full = loss(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        half = loss(torch.bfloat16)
    assert half.dtype == torch.float32
    assert half != full
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.05)
    half.backward()
    assert student.grad is not None
    assert student.grad.dtype == torch.float32


def test_nothing_is_differentiated_without_gradients() -> None:
    student, weight, _, _ = tensors()
    criterion = LogitsCriterion(config=LossConfig(kl_weight=0), labels=labels())
    with torch.no_grad():
        total, _ = chunked_loss(student, Head(weight=weight), criterion, COUNTED)
    expected = cross_entropy(student @ weight.T, labels()).sum()
    assert not total.requires_grad
    torch.testing.assert_close(total, expected.detach())
