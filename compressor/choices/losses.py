"""Losses of distillation by name: divergences on logits, and distances of hidden states."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.choices.row import Row, table


@dataclass(frozen=True, kw_only=True)
class Loss(Row):
    """A divergence of the student's next-token distribution from the teacher's.

    Its function takes the logits `[T, V]` of student and teacher and `temperature`, and returns one value per
    token `[T]`; autograd takes its gradient.

    Attributes:
        title: In reports.
        gradient: The same with the gradient by the student's logits, where that is written by hand.
        needs_tail: Whether it divides by the teacher's probability of all tokens outside the top k. That must
            then be stored: what rounded probabilities leave to them may be nothing.
    """

    title: str
    gradient: str | None = None
    needs_tail: bool = True


LOSSES = table(
    Loss(
        name="forward-kl",
        title="forward KL",
        help="KL(teacher || student): the student covers every token that is likely for the teacher.",
        code="compressor.distillation.losses:forward_kl",
        gradient="compressor.distillation.losses:forward_kl_and_gradient",
        needs_tail=False,
    ),
    Loss(
        name="reverse-kl",
        title="reverse KL",
        help="KL(student || teacher): the student avoids tokens that are unlikely for the teacher.",
        code="compressor.distillation.losses:reverse_kl",
    ),
)
# Distances of the student's hidden states from the teacher's: of both `[T, H]`, one value per token `[T]`.
STATE_LOSSES = table(
    Row(
        name="cosine",
        help="1 - cosine of the angle between the states.",
        code="compressor.distillation.losses:cosine_distance",
    ),
    Row(
        name="mse",
        help="Mean squared difference of the states.",
        code="compressor.distillation.losses:mean_squared_error",
    ),
)
