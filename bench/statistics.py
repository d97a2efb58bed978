"""Paired statistics and the rule that decides how many pairs are enough.

The interval is Student's t on log ratios: the ratio of two durations is positive and its error
multiplicative, and pairing removes what both arms suffer alike (another tenant, a falling clock).

Adding pairs until an interval looks narrow favours series that look narrow by luck. So the adding
only fixes a length; a fresh series of that length is measured, and its interval is the one reported.

A machine also drifts over minutes, which no series of seconds can see in itself. Where the fresh series
disagrees with the first, more are measured and the series become the samples: the interval then holds
what changes from one to the next (the method of batch means).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

import numpy as np
from scipy import stats

from bench.change import change_of

CONFIDENCE = 0.95
MIN_SAMPLES = 2  # one has no spread
MAX_RELATIVE_WIDTH = 0.10
NUM_SERIES = 5  # of one cell, where the first two disagree
# Of the interval that must hold "no change" between two series. Reporting only series that agree raises
# the coverage of what is reported; at 98 % by about one point.
AGREEMENT = 0.98

Verdict = Literal["ok", "NOISY"]
Sample = TypeVar("Sample")
Series = tuple[tuple[Sample, Sample], ...]


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
        series: Of (baseline, candidate) pairs. The first fixed the length; it is alone where it never
            became narrow, one fresh series follows where they agree, and `NUM_SERIES - 1` where not.
        interval: Of the reported series.
        verdict: `ok`, or `NOISY` when the reported interval is too wide.
        reason: Why it is `NOISY`.
    """

    series: tuple[Series[Sample], ...]
    interval: RatioInterval
    verdict: Verdict
    reason: str | None

    @property
    def reported(self) -> tuple[Series[Sample], ...]:
        """The series that every reported number comes from: the fresh one, or all where two disagree."""
        return _reported(self.series)


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


def series_interval(
    numerator: Sequence[Sequence[float]], denominator: Sequence[Sequence[float]]
) -> RatioInterval:
    """The interval of one series over its pairs, of several over their means.

    Args:
        numerator: Positive samples of every series, one per pair.
        denominator: The same of the other arm.

    Raises:
        ValueError: as `ratio_interval`.
    """
    if len(numerator) == 1:
        return ratio_interval(numerator[0], denominator[0])
    means = ratio_interval(*([float(stats.gmean(one)) for one in arm] for arm in (numerator, denominator)))
    return replace(means, num_pairs=sum(map(len, numerator)))


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
    first: list[tuple[Sample, Sample]] = []
    while len(first) < rule.max_pairs:
        first.append(measure_pair(len(first)))
        if len(first) >= rule.min_pairs and _is_narrow(_speedup([first], duration), rule):
            break

    def fresh() -> Series[Sample]:
        return tuple(measure_pair(index) for index in range(len(first)))

    series: list[Series[Sample]] = [tuple(first)]
    if _is_narrow(_speedup(series, duration), rule):
        series.append(fresh())
        if not _agree(*series, duration=duration):
            series += [fresh() for _ in range(NUM_SERIES - len(series))]
    return conclude(series, duration=duration, rule=rule)


def conclude(
    series: Sequence[Series[Sample]], *, duration: Callable[[Sample], float], rule: StoppingRule
) -> Trial[Sample]:
    """The verdict on finished series; see `Trial`."""
    interval = _speedup(_reported(series), duration)
    is_noisy = not _is_narrow(interval, rule)
    return Trial(
        series=tuple(series),
        interval=interval,
        verdict="NOISY" if is_noisy else "ok",
        reason=_noise(interval, rule, num_series=len(series)) if is_noisy else None,
    )


def _reported(series: Sequence[Series[Sample]]) -> tuple[Series[Sample], ...]:
    return tuple(series[-1:] if len(series) <= MIN_SAMPLES else series)


def _speedup(
    series: Sequence[Sequence[tuple[Sample, Sample]]], duration: Callable[[Sample], float]
) -> RatioInterval:
    return series_interval(
        [[duration(baseline) for baseline, _ in one] for one in series],
        [[duration(candidate) for _, candidate in one] for one in series],
    )


def _agree(first: Series[Sample], fresh: Series[Sample], *, duration: Callable[[Sample], float]) -> bool:
    """Whether the interval of the change between two series holds "no change"."""
    before, now = (
        np.log([duration(baseline) / duration(candidate) for baseline, candidate in one])
        for one in (first, fresh)
    )
    change = change_of(before, now, confidence=AGREEMENT)
    return change.low <= 1 <= change.high


def _is_narrow(interval: RatioInterval, rule: StoppingRule) -> bool:
    return interval.relative_width <= rule.max_relative_width


def _noise(interval: RatioInterval, rule: StoppingRule, *, num_series: int) -> str:
    series = {1: "the first series", 2: "the confirming series"}.get(
        num_series, f"{num_series} series that disagree"
    )
    return (
        f"the 95 % interval of {series} is {interval.relative_width:.1%} of the ratio wide "
        f"after {interval.num_pairs} pairs; {rule.max_relative_width:.0%} is allowed"
    )
