"""Distillation losses as pure functions of logits and hidden states, one value per token.

Minitron (arXiv 2407.14679, section 2.4): KL between teacher and student with p = softmax(logits /
temperature); alone, forward and at temperature 1, it is the best loss. Multiplied by temperature
squared, so that gradients keep their size (Hinton et al., 2015). States are compared after large depth
cuts only (same paper, table 17).

All are computed in float32, float64 staying what it is. Legend: T tokens, V vocabulary, H
hidden_size.
"""

from __future__ import annotations

import torch
from torch.nn import functional

# Minitron finds KL over 100 and fewer of the teacher's tokens harmful, and ModelOpt takes 1024.
SMALLEST_SAFE_TOP_K = 1000


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in the precision losses are computed in; the tensor itself where it has it."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def forward_kl(
    student_logits_TV: torch.Tensor, teacher_logits_TV: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """KL(teacher || student) of every token `[T]`, times temperature squared."""
    log_q, log_p = _log_probabilities(student_logits_TV, teacher_logits_TV, temperature)
    return functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1) * temperature**2


def reverse_kl(
    student_logits_TV: torch.Tensor, teacher_logits_TV: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """KL(student || teacher) of every token `[T]`, times temperature squared."""
    log_q, log_p = _log_probabilities(student_logits_TV, teacher_logits_TV, temperature)
    return functional.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1) * temperature**2


def forward_kl_and_gradient(
    student_logits_TV: torch.Tensor, teacher_logits_TV: torch.Tensor, *, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """`forward_kl` over the whole vocabulary, and its gradient by the student's logits `[T, V]`.

    Written by hand because the memory of a chunk is that of its logits a few times over.
    """
    log_p = functional.log_softmax(_cooled(teacher_logits_TV, temperature), dim=-1)
    log_q = functional.log_softmax(_cooled(student_logits_TV, temperature), dim=-1)
    difference = log_p - log_q
    p = log_p.exp_()
    loss = difference.mul_(p).sum(-1).mul_(temperature**2)
    # d/dlogits of temperature^2 KL is temperature (q - p).
    return loss, log_q.exp_().sub_(p).mul_(temperature)


def cross_entropy_and_gradient(
    student_logits_TV: torch.Tensor, labels_T: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of every token `[T]`, labels all there, and its gradient by the logits `[T, V]`."""
    log_q = functional.log_softmax(wide(student_logits_TV), dim=-1)
    loss = -log_q.gather(-1, labels_T.unsqueeze(-1)).squeeze(-1)
    gradient = log_q.exp_()
    rows = torch.arange(labels_T.shape[0], device=labels_T.device)
    gradient[rows, labels_T] -= 1
    return loss, gradient


def cosine_distance(student_TH: torch.Tensor, teacher_TH: torch.Tensor) -> torch.Tensor:
    """1 - cosine of the angle between two states of every token, `[T]`."""
    return 1 - functional.cosine_similarity(wide(student_TH), wide(teacher_TH), dim=-1)


def mean_squared_error(student_TH: torch.Tensor, teacher_TH: torch.Tensor) -> torch.Tensor:
    """Mean over channels of the squared difference of two states of every token, `[T]`."""
    return (wide(student_TH) - wide(teacher_TH)).square().mean(-1)


def dynamic_weight(logits_loss: torch.Tensor, intermediate_loss: torch.Tensor) -> torch.Tensor:
    """Minitron's alpha = logits loss / intermediate loss, a constant to the gradient."""
    smallest = torch.finfo(intermediate_loss.dtype).tiny
    return logits_loss.detach() / intermediate_loss.detach().clamp_min(smallest)


def _log_probabilities(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    log_q = functional.log_softmax(_cooled(student, temperature), dim=-1)
    return log_q, functional.log_softmax(_cooled(teacher, temperature), dim=-1).to(log_q.dtype)


def _cooled(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return wide(logits) if temperature == 1 else wide(logits) / temperature
