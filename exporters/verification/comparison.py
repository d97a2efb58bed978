"""How far a candidate's logits are from a reference's, and how far each precision may be.

All figures are over positions: every position of every prompt counts, not only the last. Work is done
in float64 over blocks of rows, so that a large vocabulary needs no second copy of the logits.

Departure: `max_relative` divides by the largest reference logit of all positions, not element by
element, because logits near zero make the latter meaningless.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from compressor.core.errors import VerificationError
from exporters.checks.equality import expect_equal
from exporters.verification.tolerance import LogitFigures

SIGNIFICANT_DIGITS = 6
_BLOCK_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class LogitComparison:
    """A candidate's logits against a reference's: absolute differences, and the largest reference logit.

    `kl` is the mean over positions of KL(reference || candidate), in nats; `num_agreeing` counts positions
    where both have the same largest logit.
    """

    num_positions: int
    max_abs: float
    mean_abs: float
    max_reference: float
    kl: float
    num_agreeing: int

    @property
    def max_relative(self) -> float:
        """Largest absolute difference over the largest absolute reference logit."""
        return self.max_abs / self.max_reference if self.max_reference else float(self.max_abs > 0)

    @property
    def top1_agreement(self) -> float:
        """Share of positions with the same largest logit."""
        return self.num_agreeing / self.num_positions

    def figures(self) -> LogitFigures:
        """What is recorded of it."""
        return LogitFigures(
            num_positions=self.num_positions,
            max_abs=rounded(self.max_abs),
            mean_abs=rounded(self.mean_abs),
            max_relative=rounded(self.max_relative),
            kl=rounded(self.kl),
            top1_agreement=rounded(self.top1_agreement),
        )


def rounded(value: float) -> float:
    """A figure as it is recorded."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def compare_logits(reference: torch.Tensor, candidate: torch.Tensor) -> LogitComparison:
    """Compare logits, both `[num_positions, vocab_size]`; VerificationError for others or not finite ones."""
    shapes = list(reference.shape), list(candidate.shape)
    expect_equal("the logits have another shape", *shapes, where="logits")
    parts = zip(reference.split(_BLOCK_ROWS), candidate.split(_BLOCK_ROWS), strict=True)
    return combine(_compare_block(first.double(), second.double()) for first, second in parts)


def combine(parts: Iterable[LogitComparison]) -> LogitComparison:
    """One comparison over the positions of several (of one vocabulary)."""
    listed = list(parts)
    total = sum(part.num_positions for part in listed)
    return LogitComparison(
        num_positions=total,
        max_abs=max(part.max_abs for part in listed),
        mean_abs=sum(part.mean_abs * part.num_positions for part in listed) / total,
        max_reference=max(part.max_reference for part in listed),
        kl=sum(part.kl * part.num_positions for part in listed) / total,
        num_agreeing=sum(part.num_agreeing for part in listed),
    )


def _compare_block(reference: torch.Tensor, candidate: torch.Tensor) -> LogitComparison:
    for name, logits in (("reference", reference), ("candidate", candidate)):
        if not torch.isfinite(logits).all():
            raise VerificationError("a logit is not finite", where=name, found="NaN or inf")
    difference = (reference - candidate).abs()
    log_p, log_q = reference.log_softmax(-1), candidate.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)
    return LogitComparison(
        num_positions=reference.shape[0],
        max_abs=difference.max().item(),
        mean_abs=difference.mean().item(),
        max_reference=reference.abs().max().item(),
        kl=kl.mean().item(),
        num_agreeing=int((reference.argmax(-1) == candidate.argmax(-1)).sum()),
    )
