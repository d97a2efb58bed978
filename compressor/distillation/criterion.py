"""Which losses a run uses, and the one on logits as the chunked machinery calls it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from compressor.distillation.chunked import TeacherLogits, autograd_gradient
from compressor.distillation.losses import (
    bucketed_forward_kl,
    cross_entropy_and_gradient,
    forward_kl,
    forward_kl_and_gradient,
    reverse_kl,
)

StateLoss = Literal["off", "cosine", "mse"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss of a distillation; the default is Minitron's, forward KL on logits alone.

    Attributes:
        loss: Direction of the KL.
        kl_weight: Of KL; cross-entropy has the rest. 0 needs no teacher.
        temperature: Of the KL's softmax.
        top_k: KL over the teacher's likeliest tokens alone, renormalised; None for all.
        intermediate: Loss on the states behind the mapped decoder layers.
        embedding: Loss on the embeddings' output.
        layer_pairs: (teacher, student) layers from 0, for `intermediate`.
    """

    loss: Literal["forward-kl", "reverse-kl"] = "forward-kl"
    kl_weight: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    intermediate: StateLoss = "off"
    embedding: StateLoss = "off"
    layer_pairs: tuple[tuple[int, int], ...] = ()

    @property
    def compares_states(self) -> bool:
        """Whether hidden states or embeddings are compared as well."""
        return self.intermediate != "off" or self.embedding != "off"

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss takes anything from a teacher, in memory or stored."""
        return self.kl_weight > 0 or self.compares_states


@dataclass(frozen=True, kw_only=True)
class StoredTop:
    """What is left of a teacher's logits: its likeliest tokens, most likely first, at temperature 1."""

    ids: torch.Tensor
    logprobs: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class LogitsCriterion:
    """kl_weight KL + (1 - kl_weight) CE of a chunk of tokens, and its gradient.

    Attributes:
        config: Which KL, and its weight.
        labels: Next token ids; those of the counted positions are all there.
        teacher: What to compare with; None for cross-entropy alone.
    """

    config: LossConfig
    labels: torch.Tensor
    teacher: TeacherLogits | StoredTop | None = None

    def __call__(
        self, logits_TV: torch.Tensor, positions_T: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of every token `[T]` and its gradient by the logits `[T, V]`."""
        weight = self.config.kl_weight
        if self.teacher is None or weight == 0:
            return cross_entropy_and_gradient(logits_TV, self.labels[positions_T])
        soft = self._divergence(logits_TV, positions_T, self.teacher)
        if weight == 1:
            return soft
        hard = cross_entropy_and_gradient(logits_TV, self.labels[positions_T])
        loss = soft[0].mul_(weight).add_(hard[0], alpha=1 - weight)
        return loss, soft[1].mul_(weight).add_(hard[1], alpha=1 - weight)

    def _divergence(
        self, logits: torch.Tensor, positions: torch.Tensor, teacher: TeacherLogits | StoredTop
    ) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.config
        if isinstance(teacher, StoredTop):
            return self._from_stored(logits, teacher.ids[positions], teacher.logprobs[positions])
        if config.loss == "forward-kl" and config.top_k is None:
            return forward_kl_and_gradient(logits, teacher(positions), temperature=config.temperature)
        divergence = forward_kl if config.loss == "forward-kl" else reverse_kl
        criterion = partial(
            divergence,
            teacher_logits_TV=teacher(positions),
            temperature=config.temperature,
            top_k=config.top_k,
        )
        return autograd_gradient(criterion, logits)

    def _from_stored(
        self, logits: torch.Tensor, ids: torch.Tensor, logprobs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Renormalised over top_k when there is one, else with the tail as one bucket."""
        config = self.config
        if config.top_k is None:
            return autograd_gradient(
                partial(bucketed_forward_kl, top_ids_TK=ids, top_logprobs_TK=logprobs), logits
            )
        divergence = forward_kl if config.loss == "forward-kl" else reverse_kl
        ids, logprobs = ids[:, : config.top_k].long(), logprobs[:, : config.top_k]

        def over_stored(student_logits: torch.Tensor) -> torch.Tensor:
            return divergence(student_logits.gather(-1, ids), logprobs, temperature=config.temperature)

        return autograd_gradient(over_stored, logits)
