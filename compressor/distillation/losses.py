"""Distillation losses as pure functions of hidden states and LM heads.

Minitron (arXiv 2407.14679, section 2.4): L_logits is the mean over tokens of KL(p_teacher ||
p_student) with p = softmax(logits / temperature); alone, at temperature 1, it is the best loss.
Multiplied by temperature squared, so that gradients keep their size (Hinton et al., 2015).

Logits are never held for more than a chunk of tokens: each chunk goes through both heads, and the
gradients by the student's hidden states and head are computed on the way, not recomputed later.

Legend: T tokens, V vocabulary, H hidden_size (each model its own).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

CHUNK_VALUES = 1 << 25
IGNORED = -100


def forward_kl(
    student_logits_TV: torch.Tensor, teacher_logits_TV: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """KL(teacher || student) summed over tokens, in float32, times temperature squared.

    The plain form on full logits: the definition that the chunked form is tested against.
    """
    log_q = functional.log_softmax(student_logits_TV.float() / temperature, dim=-1)
    log_p = functional.log_softmax(teacher_logits_TV.float() / temperature, dim=-1)
    return functional.kl_div(log_q, log_p, log_target=True, reduction="sum") * temperature**2


def chunked_forward_kl(
    student_hidden_TH: torch.Tensor,
    student_head_VH: torch.Tensor,
    teacher_hidden_TH: torch.Tensor,
    teacher_head_VH: torch.Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    targets_T: torch.Tensor | None = None,
    kl_weight: float = 1.0,
) -> torch.Tensor:
    """`forward_kl` through both heads, chunk by chunk; gradients reach the student's two arguments.

    With targets, kl_weight KL + (1 - kl_weight) CE, the cross-entropy at temperature 1.

    Args:
        student_hidden_TH: The student's final hidden states, after the last norm.
        student_head_VH: Its LM head.
        teacher_hidden_TH: The teacher's final hidden states; no gradient.
        teacher_head_VH: Its LM head; no gradient.
        temperature: Softmax temperature.
        chunk_tokens: Tokens per chunk; by default as many as make 2^25 logits.
        targets_T: Next token ids, `IGNORED` where there is none; None for KL alone. Cross-entropy is
            averaged over the others and multiplied by T, so that the whole divided by T mixes two means.
        kl_weight: Of KL, 0 to 1.

    Returns:
        The sum over tokens, a float32 scalar. Matrix products run in the ambient autocast dtype.

    Raises:
        ValueError: when the vocabularies differ.
    """
    if student_head_VH.shape[0] != teacher_head_VH.shape[0]:
        raise ValueError(
            f"vocabularies differ: student {student_head_VH.shape[0]}, teacher {teacher_head_VH.shape[0]}"
        )
    chunk_tokens = chunk_tokens or max(1, CHUNK_VALUES // student_head_VH.shape[0])
    mix = _Mix(targets_T, temperature, kl_weight if targets_T is not None else 1.0)
    loss: torch.Tensor = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        student_hidden_TH, student_head_VH, teacher_hidden_TH, teacher_head_VH, mix, chunk_tokens
    )
    return loss


class _Mix:
    """The loss of a chunk of logits, and its gradient."""

    def __init__(self, targets_T: torch.Tensor | None, temperature: float, kl_weight: float) -> None:
        self._targets, self._temperature, self._kl_weight = targets_T, temperature, kl_weight
        self._ce_weight = 0.0
        if targets_T is not None:
            num_targets = max(1, int((targets_T != IGNORED).sum()))
            self._ce_weight = (1 - kl_weight) * targets_T.shape[0] / num_targets

    def loss_and_grad(
        self, student: torch.Tensor, teacher: torch.Tensor, chunk: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both in float32; may use the logits' memory."""
        hard = self._cross_entropy(student, chunk) if self._ce_weight else None
        log_p = _log_softmax(teacher, self._temperature)
        log_q = _log_softmax(student, self._temperature)
        loss = functional.kl_div(log_q, log_p, log_target=True, reduction="sum")
        loss = loss * (self._kl_weight * self._temperature**2)
        # d/dlogits of temperature^2 KL is temperature (q - p).
        grad = log_q.exp_().sub_(log_p.exp_()).mul_(self._kl_weight * self._temperature)
        return (loss, grad) if hard is None else (loss + hard[0], grad.add_(hard[1]))

    def _cross_entropy(self, student: torch.Tensor, chunk: slice) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._targets is not None
        targets = self._targets[chunk]
        scored = targets != IGNORED
        log_q = functional.log_softmax(student.float(), dim=-1)
        loss = functional.nll_loss(log_q, targets, ignore_index=IGNORED, reduction="sum")
        grad = log_q.exp_()
        rows = torch.arange(targets.shape[0], device=targets.device)
        grad[rows, targets.clamp_min(0)] -= 1
        return loss * self._ce_weight, grad.mul_(scored.unsqueeze(-1) * self._ce_weight)


def _compute_dtype(reference: torch.Tensor) -> torch.dtype:
    device = reference.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else reference.dtype


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: torch.Tensor,
        student_head: torch.Tensor,
        teacher_hidden: torch.Tensor,
        teacher_head: torch.Tensor,
        mix: _Mix,
        chunk_tokens: int,
    ) -> torch.Tensor:
        dtype = _compute_dtype(student_head)
        with torch.autocast(student_hidden.device.type, enabled=False):
            head, teacher_head = student_head.to(dtype), teacher_head.to(dtype)
            total = torch.zeros((), dtype=torch.float32, device=student_hidden.device)
            grad_hidden = torch.empty_like(student_hidden)
            grad_head = torch.zeros_like(student_head, dtype=torch.float32)
            for start in range(0, student_hidden.shape[0], chunk_tokens):
                chunk = slice(start, start + chunk_tokens)
                hidden = student_hidden[chunk].to(dtype)
                teacher_logits = teacher_hidden[chunk].to(dtype) @ teacher_head.T
                loss, grad = mix.loss_and_grad(hidden @ head.T, teacher_logits, chunk)
                total += loss
                grad_logits = grad.to(dtype)
                grad_hidden[chunk] = (grad_logits @ head).to(grad_hidden.dtype)
                grad_head += grad_logits.T @ hidden
        ctx.save_for_backward(grad_hidden, grad_head.to(student_head.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        scale = grad_outputs[0]
        return grad_hidden * scale, grad_head * scale, None, None, None, None


def _log_softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return functional.log_softmax(logits.float().div_(temperature), dim=-1)
