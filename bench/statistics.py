"""Paired statistics and the rule that decides how many pairs are enough.

The interval is Student's t on log ratios: the ratio of two durations is positive and its error
multiplicative, and pairing removes what both arms suffer alike (another tenant, a falling clock).

Adding pairs until an interval looks narrow favours series that look narrow by luck. So the adding
only fixes a length; a fresh series of that length is measured, and its interval is the one reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
MIN_SAMPLES = 2  # one has no spread
MAX_RELATIVE_WIDTH = 0.10

Verdict = Literal["ok", "NOISY"]
Sample = TypeVar("Sample")


@dataclass(frozen=True, kw_only=True)
class RatioInterval:
    """A ratio with its confidence interval, from `num_pairs` paired samples."""

    ratio: float
    low: float
    high: float
    num_pairs: int

    @property
    def relative_width(self) -> float:
        """Width of the interval as a fraction of the ratio."""
        return (self.high - self.low) / self.ratio


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """When a series is long enough, and how wide its interval may be.

    Raises:
        ValueError: unless `2 <= min_pairs <= max_pairs`; one pair has no spread.
    """

    min_pairs: int
    max_pairs: int
    max_relative_width: float = MAX_RELATIVE_WIDTH

    def __post_init__(self) -> None:
        if not MIN_SAMPLES <= self.min_pairs <= self.max_pairs:
            raise ValueError(
                f"expected {MIN_SAMPLES} <= min_pairs <= max_pairs, found {self.min_pairs}, {self.max_pairs}"
            )


@dataclass(frozen=True, kw_only=True)
class Trial(Generic[Sample]):
    """A finished measurement of one pair of arms.

    Attributes:
        exploration: The (baseline, candidate) pairs that fixed the length of the series.
        confirmation: The fresh series; empty when exploration never became narrow enough.
        interval: Of the confirmation, or of the exploration where there is none.
        verdict: `ok`, or `NOISY` when the reported interval is too wide.
        reason: Why it is `NOISY`.
    """

    exploration: tuple[tuple[Sample, Sample], ...]
    confirmation: tuple[tuple[Sample, Sample], ...]
    interval: RatioInterval
    verdict: Verdict
    reason: str | None

    @property
    def reported(self) -> tuple[tuple[Sample, Sample], ...]:
        """The series that every reported number comes from."""
        return self.confirmation or self.exploration


def median(samples: Sequence[float]) -> float:
    """The middle sample."""
    return float(np.median(samples))


def coefficient_of_variation(samples: Sequence[float]) -> float:
    """Sample standard deviation (n - 1) over the mean."""
    return float(np.std(samples, ddof=1) / np.mean(samples))


def ratio_interval(
    numerator: Sequence[float], denominator: Sequence[float], *, confidence: float = CONFIDENCE
) -> RatioInterval:
    """Geometric mean of paired ratios with its log-ratio t-interval.

    Args:
        numerator: Positive samples, one per pair.
        denominator: Positive samples, in the same order.
        confidence: Coverage of the interval.

    Raises:
        ValueError: for fewer than two pairs, unequal lengths, or samples that are not positive.
    """
    above, below = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    if above.shape != below.shape or above.ndim != 1 or above.size < MIN_SAMPLES:
        raise ValueError(
            f"expected two equally long series of at least {MIN_SAMPLES}, found {above.shape}, {below.shape}"
        )
    if not (np.isfinite(above).all() and np.isfinite(below).all() and min(above.min(), below.min()) > 0):
        raise ValueError("ratios need positive, finite samples")
    log_ratios = np.log(above) - np.log(below)
    mean = float(log_ratios.mean())
    error = float(log_ratios.std(ddof=1)) / math.sqrt(log_ratios.size)
    margin = float(stats.t.ppf((1 + confidence) / 2, log_ratios.size - 1)) * error
    return RatioInterval(
        ratio=math.exp(mean),
        low=math.exp(mean - margin),
        high=math.exp(mean + margin),
        num_pairs=int(log_ratios.size),
    )


def paired_trial(
    measure_pair: Callable[[int], tuple[Sample, Sample]],
    *,
    duration: Callable[[Sample], float],
    rule: StoppingRule,
) -> Trial[Sample]:
    """Measure pairs until the speed-up's interval is narrow, then confirm it on a fresh series.

    Args:
        measure_pair: Measures one (baseline, candidate) pair; gets the pair's index in its series.
        duration: Seconds of a sample; the speed-up is baseline duration over candidate duration.
        rule: Bounds on the number of pairs and the width.
    """
    exploration: list[tuple[Sample, Sample]] = []
    while len(exploration) < rule.max_pairs:
        exploration.append(measure_pair(len(exploration)))
        if len(exploration) >= rule.min_pairs and _is_narrow(_speedup(exploration, duration), rule):
            break
    confirmation: list[tuple[Sample, Sample]] = []
    if _is_narrow(_speedup(exploration, duration), rule):
        confirmation = [measure_pair(index) for index in range(len(exploration))]
    return conclude(exploration, confirmation, duration=duration, rule=rule)


def conclude(
    exploration: Sequence[tuple[Sample, Sample]],
    confirmation: Sequence[tuple[Sample, Sample]],
    *,
    duration: Callable[[Sample], float],
    rule: StoppingRule,
) -> Trial[Sample]:
    """The verdict on two finished series; `confirmation` is empty where the first was too wide."""
    interval = _speedup(confirmation or exploration, duration)
    is_noisy = not _is_narrow(interval, rule)
    return Trial(
        exploration=tuple(exploration),
        confirmation=tuple(confirmation),
        interval=interval,
        verdict="NOISY" if is_noisy else "ok",
        reason=_noise(interval, rule, is_confirmation=bool(confirmation)) if is_noisy else None,
    )


def _speedup(pairs: Sequence[tuple[Sample, Sample]], duration: Callable[[Sample], float]) -> RatioInterval:
    return ratio_interval(
        [duration(baseline) for baseline, _ in pairs], [duration(candidate) for _, candidate in pairs]
    )


def _is_narrow(interval: RatioInterval, rule: StoppingRule) -> bool:
    return interval.relative_width <= rule.max_relative_width


def _noise(interval: RatioInterval, rule: StoppingRule, *, is_confirmation: bool) -> str:
    series = "the confirming series" if is_confirmation else "the first series"
    return (
        f"the 95 % interval of {series} is {interval.relative_width:.1%} of the ratio wide "
        f"after {interval.num_pairs} pairs; {rule.max_relative_width:.0%} is allowed"
    )
