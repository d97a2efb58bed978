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
        stored: The same at temperature 1 from a teacher's stored top-k tokens and one bucket for all
            others; None where such a bucket does not determine the loss.
    """

    title: str
    gradient: str | None = None
    stored: str | None = None


LOSSES = table(
    Loss(
        name="forward-kl",
        title="forward KL",
        help="KL(teacher || student): the student covers every token that is likely for the teacher.",
        code="compressor.distillation.losses:forward_kl",
        gradient="compressor.distillation.losses:forward_kl_and_gradient",
        stored="compressor.distillation.losses:bucketed_forward_kl",
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
