"""Distributions over some tokens and all others, against sums of probabilities written out."""

from __future__ import annotations

import math

import pytest
import torch

from compressor.distillation.buckets import buckets, remainder, stored_buckets
from compressor.distillation.losses import forward_kl, reverse_kl
from compressor.distillation.token_weights import entropy, entropy_weights

TOKENS, VOCAB = 5, 11


def logits(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(TOKENS, VOCAB, dtype=torch.float64, generator=generator)


def kl_by_hand(p: list[float], q: list[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def cut_down(row: list[float], kept: list[int], temperature: float) -> list[float]:
    weights = [math.exp(value / temperature) for value in row]
    probabilities = [weight / math.fsum(weights) for weight in weights]
    others = math.fsum(value for index, value in enumerate(probabilities) if index not in kept)
    return [*(probabilities[index] for index in kept), *([others] if len(kept) < len(row) else [])]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [1, 4, VOCAB - 1, VOCAB])
def test_divergences_over_buckets_equal_the_definition(top_k: int, temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    ids = teacher.topk(top_k, dim=-1).indices
    ours, theirs = (buckets(model, ids, temperature=temperature) for model in (student, teacher))
    rows = zip(student.tolist(), teacher.tolist(), ids.tolist(), strict=True)
    pairs = [tuple(cut_down(row, kept, temperature) for row in (t, s)) for s, t, kept in rows]
    forward = [kl_by_hand(p, q) * temperature**2 for p, q in pairs]
    backward = [kl_by_hand(q, p) * temperature**2 for p, q in pairs]
    assert forward_kl(ours, theirs, temperature=temperature).tolist() == pytest.approx(forward, abs=1e-12)
    assert reverse_kl(ours, theirs, temperature=temperature).tolist() == pytest.approx(backward, abs=1e-12)


def test_more_buckets_bound_the_divergence_closer_and_all_give_it() -> None:
    student, teacher = logits(0), logits(1)
    previous = torch.zeros(TOKENS, dtype=torch.float64)
    for size in range(1, VOCAB + 1):
        ids = teacher.topk(size, dim=-1).indices
        bound = forward_kl(buckets(student, ids), buckets(teacher, ids))
        assert (bound >= previous - 1e-12).all()
        previous = bound
    torch.testing.assert_close(previous, forward_kl(student, teacher))


def test_gradients_equal_finite_differences() -> None:
    ids = logits(1).topk(4, dim=-1).indices
    student = logits(0).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda own: forward_kl(buckets(own, ids), buckets(logits(1), ids)), student
    )


@pytest.mark.parametrize("top_k", [None, 1, 3, 6])
@pytest.mark.parametrize("stored", [6, VOCAB])
def test_stored_buckets_are_those_of_the_logits(stored: int, top_k: int | None) -> None:
    teacher = logits(1)
    logprobs, ids = teacher.log_softmax(-1).topk(stored, dim=-1)
    tail = None if stored == VOCAB else (1 - logprobs.exp().sum(-1)).log()
    found = stored_buckets(logprobs, tail, top_k=top_k)
    torch.testing.assert_close(found.softmax(-1), buckets(teacher, ids[:, :top_k]).softmax(-1))


def test_a_rounded_remainder_may_be_nothing_and_stays_finite() -> None:
    student, teacher = logits(0).float(), 4 * logits(1).float()
    for size in (3, VOCAB - 1):
        logprobs, ids = teacher.log_softmax(-1).topk(size, dim=-1)
        rounded = logprobs.half()
        assert remainder(rounded).isfinite().all()
        leaf = student.clone().requires_grad_()
        loss = forward_kl(buckets(leaf, ids), stored_buckets(rounded, remainder(rounded)))
        exact = forward_kl(buckets(student, ids), buckets(teacher, ids))
        torch.testing.assert_close(loss.detach(), exact, rtol=5e-3, atol=5e-3)
        assert torch.autograd.grad(loss.sum(), leaf)[0].isfinite().all()
    assert remainder(torch.tensor([[0.1, -3.0]])).item() == pytest.approx(-80)


def test_weights_by_entropy_are_as_published() -> None:
    student, teacher = logits(0), logits(1)
    found = entropy_weights(student, teacher)
    for row in range(TOKENS):
        h_t, h_s = (
            -math.fsum(p * math.log(p) for p in cut_down(model[row].tolist(), list(range(VOCAB)), 1.0))
            for model in (teacher, student)
        )
        assert found[row].item() == pytest.approx((h_t + h_t * h_s / math.log(VOCAB)) / 2)


def test_the_weight_of_a_sure_teacher_is_nothing_and_of_two_clueless_models_the_largest() -> None:
    flat, sure = torch.zeros(1, VOCAB), torch.zeros(1, VOCAB)
    sure[0, 3] = 200
    assert entropy_weights(flat, sure).item() == pytest.approx(0, abs=1e-6)
    assert entropy_weights(flat, flat).item() == pytest.approx(math.log(VOCAB))
    assert entropy(flat).item() == pytest.approx(math.log(VOCAB))
