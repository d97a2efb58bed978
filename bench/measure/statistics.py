"""Paired statistics and the rule that decides how many pairs are enough.

The interval is Student's t on log ratios: the ratio of two durations is positive and its error
multiplicative, and pairing removes what both arms suffer alike (another tenant, a falling clock).

Adding pairs until an interval looks narrow favours series that look narrow by luck. So the adding
only fixes a length, and fresh series of that length are measured. What differs from one start of a program
to the next (where its memory came to lie) and from minute to minute (a neighbour) is constant within a
series of seconds, which cannot see it in itself. So there are several fresh series, each on freshly loaded
models, and their means are the samples of the reported interval (batch means; repetition at the highest
level that varies, as in Kalibera and Jones, ISMM 2013).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
from scipy import stats

from bench.design.cells import NUM_SERIES
from bench.report.results import Interval
from compressor.recipe.recipe import Bench

CONFIDENCE = 0.95
MIN_SAMPLES = 2  # one has no spread
MAX_RELATIVE_WIDTH = 0.10

Verdict = Literal["ok", "NOISY"]
Sample = TypeVar("Sample")
Series = tuple[tuple[Sample, Sample], ...]


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """When a series is long enough, how many fresh ones follow it, and how wide their interval may be."""

    min_pairs: int
    max_pairs: int
    num_series: int = NUM_SERIES
    max_relative_width: float = MAX_RELATIVE_WIDTH


@dataclass(frozen=True, kw_only=True)
class PairedMeasurement(Generic[Sample]):
    """A finished measurement of one pair of arms.

    `exploration` is the series of (baseline, candidate) pairs that fixed the length; `fresh` are the rule's
    number of that length, or none where the exploration never became narrow. `interval` is of the
    reported ones.
    """

    exploration: Series[Sample]
    fresh: tuple[Series[Sample], ...]
    interval: Interval
    verdict: Verdict
    reason: str | None

    @property
    def reported(self) -> tuple[Series[Sample], ...]:
        """The series that every reported number comes from."""
        return self.fresh or (self.exploration,)


def stopping_rule(config: Bench) -> StoppingRule:
    """The rule that a recipe asks for."""
    return StoppingRule(min_pairs=config.min_pairs, max_pairs=config.max_pairs, num_series=config.num_series)


def median(samples: Sequence[float]) -> float:
    """The middle sample."""
    return float(np.median(samples))


def coefficient_of_variation(samples: Sequence[float]) -> float:
    """Sample standard deviation (n - 1) over the mean."""
    return float(np.std(samples, ddof=1) / np.mean(samples))


def ratio_interval(numerator: Sequence[float], denominator: Sequence[float]) -> Interval:
    """Geometric mean of paired ratios with its log-ratio t-interval.

    Fewer than two pairs, unequal lengths and samples that are not positive are a ValueError.
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
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, log_ratios.size - 1)) * error
    return Interval(
        ratio=math.exp(mean),
        low=math.exp(mean - margin),
        high=math.exp(mean + margin),
        num_pairs=int(log_ratios.size),
    )


def series_interval(numerator: Sequence[Sequence[float]], denominator: Sequence[Sequence[float]]) -> Interval:
    """The `ratio_interval` of one series over its pairs, of several over their means."""
    if len(numerator) == 1:
        return ratio_interval(numerator[0], denominator[0])
    means = ratio_interval(*([float(stats.gmean(one)) for one in arm] for arm in (numerator, denominator)))
    return means.model_copy(update={"num_pairs": sum(map(len, numerator))})


def measure_in_pairs(
    measure_pair: Callable[[int], tuple[Sample, Sample]],
    *,
    duration: Callable[[Sample], float],
    rule: StoppingRule,
) -> PairedMeasurement[Sample]:
    """Measure pairs until the speed-up's interval is narrow, then fresh series of that length.

    Args:
        measure_pair: Measures one (baseline, candidate) pair; gets the pair's index in its series.
        duration: Seconds of a sample; the speed-up is baseline duration over candidate duration.
        rule: Bounds on the number of pairs and the width.
    """
    series: list[Series[Sample]] = []
    while needs_series(series, duration=duration, rule=rule):
        series.append(next_series(series, measure_pair, duration=duration, rule=rule))
    return conclude(series[0], series[1:], duration=duration, rule=rule)


def needs_series(
    done: Sequence[Series[Sample]], *, duration: Callable[[Sample], float], rule: StoppingRule
) -> bool:
    """Whether another series is to be measured: more are not measured where the first stayed wide."""
    if not done:
        return True
    return len(done) <= rule.num_series and _is_narrow(_speedup(done[:1], duration), rule)


def next_series(
    done: Sequence[Series[Sample]],
    measure_pair: Callable[[int], tuple[Sample, Sample]],
    *,
    duration: Callable[[Sample], float],
    rule: StoppingRule,
) -> Series[Sample]:
    """The first series grows until its interval is narrow or it has `max_pairs`; the others are as long."""
    if done:
        return tuple(measure_pair(index) for index in range(len(done[0])))
    pairs: list[tuple[Sample, Sample]] = []
    while len(pairs) < rule.max_pairs:
        pairs.append(measure_pair(len(pairs)))
        if len(pairs) >= rule.min_pairs and _is_narrow(_speedup([pairs], duration), rule):
            break
    return tuple(pairs)


def conclude(
    exploration: Series[Sample],
    fresh: Sequence[Series[Sample]],
    *,
    duration: Callable[[Sample], float],
    rule: StoppingRule,
) -> PairedMeasurement[Sample]:
    """The verdict on finished series; `fresh` is empty where the first was too wide."""
    interval = _speedup(fresh or [exploration], duration)
    is_noisy = not _is_narrow(interval, rule)
    return PairedMeasurement(
        exploration=exploration,
        fresh=tuple(fresh),
        interval=interval,
        verdict="NOISY" if is_noisy else "ok",
        reason=_noise(interval, rule, num_fresh=len(fresh)) if is_noisy else None,
    )


def _speedup(
    series: Sequence[Sequence[tuple[Sample, Sample]]], duration: Callable[[Sample], float]
) -> Interval:
    return series_interval(
        [[duration(baseline) for baseline, _ in one] for one in series],
        [[duration(candidate) for _, candidate in one] for one in series],
    )


def _is_narrow(interval: Interval, rule: StoppingRule) -> bool:
    return interval.relative_width <= rule.max_relative_width


def _noise(interval: Interval, rule: StoppingRule, *, num_fresh: int) -> str:
    series = f"{num_fresh} fresh series" if num_fresh else "the first series"
    return (
        f"the 95 % interval of {series} is {interval.relative_width:.1%} of the ratio wide "
        f"after {interval.num_pairs} pairs; {rule.max_relative_width:.0%} is allowed"
    )
