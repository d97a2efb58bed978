"""Losses of distillation by name: divergences on logits, and distances of hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compressor.core.lazy import resolve


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A row of `LOSSES`: a divergence of the student's next-token distribution from the teacher's.

    Attributes:
        name: In recipes and on the command line.
        title: In reports.
        help: One sentence for those who choose.
        place: "module:function" of the logits `[T, V]` of student and teacher and of `temperature`; it
            returns one value per token `[T]`, and autograd takes its gradient.
        gradient: The same with the gradient by the student's logits, where that is written by hand.
        stored: The same at temperature 1 from a teacher's stored top-k tokens and one bucket for all
            others; None where such a bucket does not determine the loss.
    """

    name: str
    title: str
    help: str
    place: str
    gradient: str | None = None
    stored: str | None = None

    def load(self) -> Any:
        """The function at `place`."""
        return resolve(self.place)


@dataclass(frozen=True, kw_only=True)
class StateLoss:
    """A row of `STATE_LOSSES`: a distance of the student's hidden states from the teacher's.

    Attributes:
        name: In recipes and on the command line.
        help: One sentence for those who choose.
        place: "module:function" of both states `[T, H]`; it returns one value per token `[T]`.
    """

    name: str
    help: str
    place: str

    def load(self) -> Any:
        """The function at `place`."""
        return resolve(self.place)


_LOSSES = (
    Loss(
        name="forward-kl",
        title="forward KL",
        help="KL(teacher || student): the student covers every token that is likely for the teacher.",
        place="compressor.distillation.losses:forward_kl",
        gradient="compressor.distillation.losses:forward_kl_and_gradient",
        stored="compressor.distillation.losses:bucketed_forward_kl",
    ),
    Loss(
        name="reverse-kl",
        title="reverse KL",
        help="KL(student || teacher): the student avoids tokens that are unlikely for the teacher.",
        place="compressor.distillation.losses:reverse_kl",
    ),
)
_STATE_LOSSES = (
    StateLoss(
        name="cosine",
        help="1 - cosine of the angle between the states.",
        place="compressor.distillation.losses:cosine_distance",
    ),
    StateLoss(
        name="mse",
        help="Mean squared difference of the states.",
        place="compressor.distillation.losses:mean_squared_error",
    ),
)
LOSSES: dict[str, Loss] = {row.name: row for row in _LOSSES}
STATE_LOSSES: dict[str, StateLoss] = {row.name: row for row in _STATE_LOSSES}
