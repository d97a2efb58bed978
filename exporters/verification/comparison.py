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
from compressor.core.records import Record

SIGNIFICANT_DIGITS = 6
_BLOCK_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class LogitComparison:
    """A candidate's logits against a reference's.

    Attributes:
        num_positions: Positions compared.
        max_abs: Largest absolute difference of any logit.
        mean_abs: Mean absolute difference over all logits.
        max_reference: Largest absolute reference logit.
        kl: Mean over positions of KL(reference || candidate), in nats.
        num_agreeing: Positions where both have the same largest logit.
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


class LogitFigures(Record):
    """A comparison as it is recorded, rounded to six significant digits; see `LogitComparison`."""

    num_positions: int
    max_abs: float
    mean_abs: float
    max_relative: float
    kl: float
    top1_agreement: float


class Tolerance(Record):
    """What a precision must keep to; beyond it the export is refused."""

    max_relative: float
    min_top1: float
    min_positions: int = 2000


# Precision to tolerance; None is reported without one.
# 16bit: the same bytes through the same library, so the same logits.
# fp8: activations are rounded to 3 mantissa bits, and how much that costs is the model's affair, not a
#   fault of the file. What the file must do is hold exactly the student's weights rounded with the
#   recorded scales, which is checked tensor by tensor; the logits' distance is reported.
# fp16: the weights are checked tensor by tensor as well; the bound on the logits only catches a graph
#   that computes something else, since half-precision accumulation order is the runtime's.
# int4: reported; gated when the recipe says so.
TOLERANCES: dict[str, Tolerance | None] = {
    "16bit": Tolerance(max_relative=0.0, min_top1=1.0),
    "fp32": Tolerance(max_relative=1e-3, min_top1=0.999),
    "fp16": Tolerance(max_relative=0.25, min_top1=0.95),
    "fp8": None,
    "int4": None,
}


def rounded(value: float) -> float:
    """A figure as it is recorded."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def compare_logits(reference: torch.Tensor, candidate: torch.Tensor) -> LogitComparison:
    """Compare logits, both `[num_positions, vocab_size]`.

    Raises:
        VerificationError: when the shapes differ, or a logit is not finite.
    """
    if reference.shape != candidate.shape:
        raise VerificationError(
            "the logits have another shape",
            where="logits",
            expected=list(reference.shape),
            found=list(candidate.shape),
        )
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


def check_tolerance(comparison: LogitComparison | LogitFigures, tolerance: Tolerance, *, where: str) -> None:
    """Refuse a candidate beyond its tolerance.

    Raises:
        VerificationError: naming the first figure that is beyond it.
    """
    if comparison.num_positions < tolerance.min_positions:
        raise VerificationError(
            "too few positions were compared",
            where=where,
            expected=f"at least {tolerance.min_positions}",
            found=comparison.num_positions,
        )
    if comparison.max_relative > tolerance.max_relative:
        raise VerificationError(
            "the logits differ from the student's",
            where=where,
            expected=f"at most {tolerance.max_relative:g} of the largest logit",
            found=f"{comparison.max_relative:.3g}",
        )
    if comparison.top1_agreement < tolerance.min_top1:
        raise VerificationError(
            "the most likely tokens differ from the student's",
            where=where,
            expected=f"the same at {tolerance.min_top1:.1%} of positions",
            found=f"{comparison.top1_agreement:.2%}",
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
