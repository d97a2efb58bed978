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
) -> torch.Tensor:
    """`forward_kl` through both heads, chunk by chunk; gradients reach the student's two arguments.

    Args:
        student_hidden_TH: The student's final hidden states, after the last norm.
        student_head_VH: Its LM head.
        teacher_hidden_TH: The teacher's final hidden states; no gradient.
        teacher_head_VH: Its LM head; no gradient.
        temperature: Softmax temperature.
        chunk_tokens: Tokens per chunk; by default as many as make 2^25 logits.

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
    loss: torch.Tensor = _ChunkedForwardKL.apply(  # type: ignore[no-untyped-call]
        student_hidden_TH, student_head_VH, teacher_hidden_TH, teacher_head_VH, temperature, chunk_tokens
    )
    return loss


def _compute_dtype(reference: torch.Tensor) -> torch.dtype:
    device = reference.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else reference.dtype


class _ChunkedForwardKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: torch.Tensor,
        student_head: torch.Tensor,
        teacher_hidden: torch.Tensor,
        teacher_head: torch.Tensor,
        temperature: float,
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
                log_p = _log_softmax(teacher_hidden[chunk].to(dtype) @ teacher_head.T, temperature)
                log_q = _log_softmax(hidden @ head.T, temperature)
                total += functional.kl_div(log_q, log_p, log_target=True, reduction="sum")
                # d/dlogits of temperature^2 KL is temperature (q - p).
                grad_logits = log_q.exp_().sub_(log_p.exp_()).mul_(temperature).to(dtype)
                grad_hidden[chunk] = (grad_logits @ head).to(grad_hidden.dtype)
                grad_head += grad_logits.T @ hidden
        ctx.save_for_backward(grad_hidden, grad_head.to(student_head.dtype))
        return total * temperature**2

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        scale = grad_outputs[0]
        return grad_hidden * scale, grad_head * scale, None, None, None, None


def _log_softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return functional.log_softmax(logits.float().div_(temperature), dim=-1)
