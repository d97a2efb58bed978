"""The chunked loss equals the plain one: values, gradients, dtypes."""

from __future__ import annotations

import pytest
import torch

from compressor.distillation.losses import IGNORED, chunked_forward_kl, forward_kl

TOKENS, VOCAB, STUDENT, TEACHER = 37, 101, 16, 24


def tensors(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    shapes = ((TOKENS, STUDENT), (VOCAB, STUDENT), (TOKENS, TEACHER), (VOCAB, TEACHER))
    made = [torch.randn(*shape, dtype=dtype) for shape in shapes]
    return (made[0].requires_grad_(), made[1].requires_grad_(), made[2], made[3])


def test_kl_of_equal_distributions_is_zero() -> None:
    logits = torch.randn(5, 7)
    assert forward_kl(logits, logits).item() == pytest.approx(0, abs=1e-6)


def test_kl_equals_the_definition() -> None:
    student, teacher = torch.randn(4, 6), torch.randn(4, 6)
    p, q = (teacher / 2).softmax(-1).double(), (student / 2).softmax(-1).double()
    expected = (p * (p / q).log()).sum() * 4
    assert forward_kl(student, teacher, temperature=2.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_kl_is_forward_not_reverse() -> None:
    sharp, flat = torch.tensor([[8.0, 0.0, 0.0]]), torch.zeros(1, 3)
    assert forward_kl(sharp, flat) > 2 * forward_kl(flat, sharp)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("chunk_tokens", [1, 8, 37, 100])
def test_chunked_gradients_equal_autograd(temperature: float, chunk_tokens: int) -> None:
    student, head, teacher, teacher_head = tensors()
    plain = forward_kl(student @ head.T, teacher @ teacher_head.T, temperature=temperature)
    expected = torch.autograd.grad(plain / 3, (student, head))
    chunked = chunked_forward_kl(
        student, head, teacher, teacher_head, temperature=temperature, chunk_tokens=chunk_tokens
    )
    found = torch.autograd.grad(chunked / 3, (student, head))
    torch.testing.assert_close(chunked, plain, rtol=1e-5, atol=1e-5)
    for ours, reference in zip(found, expected, strict=True):
        assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()


def test_tied_head_gets_both_gradients() -> None:
    weight = torch.randn(VOCAB, STUDENT, requires_grad=True)
    ids = torch.arange(TOKENS)
    teacher, teacher_head = torch.randn(TOKENS, TEACHER), torch.randn(VOCAB, TEACHER)
    plain = forward_kl(weight[ids].tanh() @ weight.T, teacher @ teacher_head.T)
    chunked = chunked_forward_kl(weight[ids].tanh(), weight, teacher, teacher_head, chunk_tokens=10)
    expected, found = torch.autograd.grad(plain, weight)[0], torch.autograd.grad(chunked, weight)[0]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_autocast_runs_the_matrix_products_in_bfloat16() -> None:
    student, head, teacher, teacher_head = tensors(torch.float32)
    full = chunked_forward_kl(student, head, teacher, teacher_head)
    with torch.autocast("cpu", torch.bfloat16):
        half = chunked_forward_kl(student, head, teacher, teacher_head)
    assert half.dtype == torch.float32
    assert half != full
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.05)
    half.backward()
    assert student.grad is not None
    assert student.grad.dtype == torch.float32


def test_different_vocabularies_are_refused() -> None:
    student, head, teacher, teacher_head = tensors()
    with pytest.raises(ValueError, match="vocabularies differ"):
        chunked_forward_kl(student, head, teacher, teacher_head[:-1])


@pytest.mark.parametrize("chunk_tokens", [1, 8, 100])
@pytest.mark.parametrize("kl_weight", [0.0, 0.67, 1.0])
def test_a_mix_with_cross_entropy_equals_autograd(kl_weight: float, chunk_tokens: int) -> None:
    student, head, teacher, teacher_head = tensors()
    targets = torch.randint(0, VOCAB, (TOKENS,))
    targets[[4, 20, 36]] = IGNORED
    logits = student @ head.T
    kl = forward_kl(logits, teacher @ teacher_head.T, temperature=2.0) / TOKENS
    ce = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED)
    plain = kl_weight * kl + (1 - kl_weight) * ce
    expected = torch.autograd.grad(plain, (student, head))
    mixed = (
        chunked_forward_kl(
            student,
            head,
            teacher,
            teacher_head,
            temperature=2.0,
            chunk_tokens=chunk_tokens,
            targets_T=targets,
            kl_weight=kl_weight,
        )
        / TOKENS
    )
    found = torch.autograd.grad(mixed, (student, head))
    torch.testing.assert_close(mixed.double(), plain.double(), rtol=1e-5, atol=1e-5)
    for ours, reference in zip(found, expected, strict=True):
        assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()
