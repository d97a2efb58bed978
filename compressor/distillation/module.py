"""The module that the trainer holds: student and teacher bodies, and the loss inside one forward.

The loss is computed here and nowhere else, so that autocast and sharding of the root module cover
everything the student computes. The teacher is not a submodule: it has no part in the optimizer, the
checkpoints or the gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from compressor.distillation.losses import IGNORED, chunked_forward_kl
from compressor.models.adapter import ModelAdapter


class DistillationModule(nn.Module):
    """Student with a frozen teacher beside it; `forward` returns the loss of a batch."""

    def __init__(self, student: Any, teacher: Any, *, temperature: float, kl_weight: float = 1.0) -> None:
        super().__init__()
        self.student = student
        self._teacher = (ModelAdapter(teacher),)
        self._temperature = temperature
        self._kl_weight = kl_weight

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Mean over tokens of KL(teacher || student), mixed with cross-entropy below a KL weight of 1.

        Args:
            input_ids: `[batch, seq_len]`; every position's next-token distribution counts.
        """
        student, teacher = ModelAdapter(self.student), self._teacher[0]
        with torch.no_grad():
            teacher_hidden = teacher.body(input_ids, use_cache=False).last_hidden_state
        student_hidden = student.body(input_ids, use_cache=False).last_hidden_state
        total = chunked_forward_kl(
            student_hidden.flatten(0, 1),
            student.lm_head_weight,
            teacher_hidden.flatten(0, 1),
            teacher.lm_head_weight,
            temperature=self._temperature,
            targets_T=_next_tokens(input_ids) if self._kl_weight < 1 else None,
            kl_weight=self._kl_weight,
        )
        return {"loss": total / input_ids.numel()}


def _next_tokens(input_ids: torch.Tensor) -> torch.Tensor:
    """Every position's target, flat; the last of each window has none."""
    targets = input_ids.roll(-1, dims=1)
    targets[:, -1] = IGNORED
    return targets.flatten()
