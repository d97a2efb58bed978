"""What is recorded of a comparison of logits, and how far each precision may be from the student."""

from __future__ import annotations

from compressor.core.errors import VerificationError
from compressor.core.records import Record


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


def check_tolerance(comparison: LogitFigures, tolerance: Tolerance, *, where: str) -> None:
    """Refuse (VerificationError) a candidate beyond its tolerance."""
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
