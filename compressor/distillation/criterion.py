"""Which losses a run uses, and the one on logits as the chunked machinery calls it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from compressor.choices.losses import LOSSES, Loss
from compressor.core.lazy import resolve
from compressor.distillation.buckets import buckets, stored_buckets
from compressor.distillation.chunked import TeacherLogits, autograd_gradient
from compressor.distillation.losses import cross_entropy_and_gradient
from compressor.distillation.token_weights import entropy_weights
from compressor.recipe.training import KLWeighting, TopKTail

OFF = "off"


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss of a distillation; the default is Minitron's, forward KL on logits alone.

    Attributes:
        loss: Divergence of student and teacher, by its name in `LOSSES`; called KL below.
        kl_weight: Weight of KL; cross-entropy gets 1 - weight. 0 needs no teacher.
        temperature: Temperature of the KL's softmax.
        top_k: KL over the teacher's top-k tokens; None for all, or all that are stored.
        top_k_tail: The other tokens are left out and both distributions renormalised ("drop"), or are one
            token more ("bucket"), as those that are not stored always are without `top_k`.
        kl_weighting: How much a token's KL counts: "uniform", or see `token_weights.py`.
        intermediate: Loss on the states behind the mapped decoder layers, by its name in `STATE_LOSSES`, or
            "off".
        embedding: Loss on the embeddings' output, likewise.
        layer_pairs: (teacher, student) layers from 0, for `intermediate`.
    """

    loss: str = "forward-kl"
    kl_weight: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_k_tail: TopKTail = "drop"
    kl_weighting: KLWeighting = "uniform"
    intermediate: str = OFF
    embedding: str = OFF
    layer_pairs: tuple[tuple[int, int], ...] = ()

    @property
    def compares_states(self) -> bool:
        """Whether hidden states or embeddings are compared as well."""
        return self.intermediate != OFF or self.embedding != OFF

    @property
    def divergence(self) -> Loss:
        """The row of the loss on logits."""
        return LOSSES[self.loss]

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss takes anything from a teacher, in memory or stored."""
        return self.kl_weight > 0 or self.compares_states


@dataclass(frozen=True, kw_only=True)
class StoredTop:
    """What is left of the logits of N positions: the top-k tokens, most likely first, at temperature 1.

    Attributes:
        ids: `[N, K]`.
        logprobs: `[N, K]`.
        tail_logprobs: `[N]`, of all other tokens together; None when there are none.
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    tail_logprobs: torch.Tensor | None = None

    def buckets(self, positions_T: torch.Tensor, top_k: int | None = None) -> torch.Tensor:
        """Logits over the first `top_k`, by default all, and one bucket for the others."""
        tail = None if self.tail_logprobs is None else self.tail_logprobs[positions_T]
        return stored_buckets(self.logprobs[positions_T], tail, top_k=top_k)


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
        soft = self._weighted(logits_TV, positions_T, self.teacher)
        if weight == 1:
            return soft
        hard = cross_entropy_and_gradient(logits_TV, self.labels[positions_T])
        loss = soft[0].mul_(weight).add_(hard[0], alpha=1 - weight)
        return loss, soft[1].mul_(weight).add_(hard[1], alpha=1 - weight)

    def _weighted(
        self, logits: torch.Tensor, positions: torch.Tensor, teacher: TeacherLogits | StoredTop
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The divergence, each token multiplied by its weight."""
        if isinstance(teacher, StoredTop):
            theirs = teacher.buckets(positions)
            loss, gradient = self._from_stored(logits, positions, teacher)
        else:
            theirs = teacher(positions)
            loss, gradient = self._divergence(logits, theirs)
        if self.config.kl_weighting == "entropy":
            weights = entropy_weights(logits, theirs)
            loss, gradient = loss.mul_(weights), gradient.mul_(weights[:, None])
        return loss, gradient

    def _from_stored(
        self, logits: torch.Tensor, positions: torch.Tensor, teacher: StoredTop
    ) -> tuple[torch.Tensor, torch.Tensor]:
        config, ids = self.config, teacher.ids[positions, : self.config.top_k].long()
        if config.top_k is None or config.top_k_tail == "bucket":
            return self._over_buckets(ids, teacher.buckets(positions, config.top_k), logits)
        return self._over(ids, teacher.logprobs[positions, : config.top_k], logits)

    def _divergence(self, logits: torch.Tensor, whole: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        config, row = self.config, self.config.divergence
        if config.top_k is not None and config.top_k < whole.shape[-1]:
            top, ids = whole.topk(config.top_k, dim=-1)
            if config.top_k_tail == "drop":
                return self._over(ids, top, logits)
            return self._over_buckets(ids, buckets(whole, ids, temperature=config.temperature), logits)
        if row.gradient is not None:
            found: tuple[torch.Tensor, torch.Tensor] = resolve(row.gradient)(
                logits, whole, temperature=config.temperature
            )
            return found
        plain = partial(row.load(), teacher_logits_TV=whole, temperature=config.temperature)
        return autograd_gradient(plain, logits)

    def _over(
        self, ids: torch.Tensor, top: torch.Tensor, logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Over these tokens of the teacher alone, both distributions renormalised."""
        divergence, temperature = self.config.divergence.load(), self.config.temperature
        return autograd_gradient(
            lambda own: divergence(own.gather(-1, ids), top, temperature=temperature), logits
        )

    def _over_buckets(
        self, ids: torch.Tensor, theirs: torch.Tensor, logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Over these tokens of the teacher, and one bucket for all others."""
        divergence, temperature = self.config.divergence.load(), self.config.temperature
        return autograd_gradient(
            lambda own: divergence(
                buckets(own, ids, temperature=temperature), theirs, temperature=temperature
            ),
            logits,
        )
