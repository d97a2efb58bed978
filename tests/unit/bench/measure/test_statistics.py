from __future__ import annotations

import math
from collections.abc import Iterable

import pytest

from bench.measure.statistics import (
    NUM_SERIES,
    PairedMeasurement,
    StoppingRule,
    coefficient_of_variation,
    measure_in_pairs,
    median,
    ratio_interval,
)

RULE = StoppingRule(min_pairs=5, max_pairs=40)


def run_series(pairs: Iterable[tuple[float, float]], rule: StoppingRule = RULE) -> PairedMeasurement[float]:
    script = iter(pairs)
    return measure_in_pairs(lambda _index: next(script), duration=float, rule=rule)


def test_median_and_cv_by_hand() -> None:
    assert median([3.0, 1.0, 2.0, 10.0]) == 2.5
    assert coefficient_of_variation([1.0, 2.0, 3.0]) == 0.5


def test_interval_by_hand() -> None:
    # Ratios 1, 2 and 4: log2 ratios 0, 1, 2 with mean 1 and deviation 1. With two degrees of freedom
    # Student's quantile has a closed form, (2p - 1) / sqrt(2p(1 - p)).
    interval = ratio_interval([1.0, 4.0, 12.0], [1.0, 2.0, 3.0])
    quantile = 0.95 / math.sqrt(2 * 0.975 * 0.025)
    margin = quantile / math.sqrt(3)
    assert interval.num_pairs == 3
    assert interval.ratio == pytest.approx(2.0, rel=1e-14)
    assert interval.low == pytest.approx(2 ** (1 - margin), rel=1e-12)
    assert interval.high == pytest.approx(2 ** (1 + margin), rel=1e-12)
    assert interval.relative_width == pytest.approx(2**margin - 2**-margin, rel=1e-12)


def test_pairing_removes_what_both_arms_suffer() -> None:
    drift = [1.0, 5.0, 2.0, 30.0, 0.1]
    interval = ratio_interval([2.0 * factor for factor in drift], drift)
    assert (interval.low, interval.high) == pytest.approx((2.0, 2.0))


@pytest.mark.parametrize(
    ("above", "below"),
    [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, 0.0], [1.0, 1.0]), ([1.0, math.nan], [1.0, 1.0])],
)
def test_series_without_an_interval_are_refused(above: list[float], below: list[float]) -> None:
    with pytest.raises(ValueError, match=r"series|positive"):
        ratio_interval(above, below)


def test_a_quiet_series_stops_at_the_minimum_and_reports_the_fresh_ones() -> None:
    first = ((2.0, 1.0),) * 5
    levels = [1.50, 1.52, 1.49, 1.51, 1.48, 1.53]
    done = run_series([*first, *((level * drift, drift) for level in levels for drift in (1, 2, 3, 4, 5))])
    assert done.exploration == first
    assert done.reported == done.fresh
    assert [len(one) for one in done.fresh] == [5] * NUM_SERIES
    # The samples are the means of the series, which here are quiet in themselves.
    expected = ratio_interval(levels, [1.0] * NUM_SERIES)
    found = (done.interval.ratio, done.interval.low, done.interval.high)
    assert found == pytest.approx((expected.ratio, expected.low, expected.high), rel=1e-12)
    assert done.interval.num_pairs == 5 * NUM_SERIES
    assert (done.verdict, done.reason) == ("ok", None)


def test_pairs_are_added_until_the_interval_is_narrow() -> None:
    # One outlier, then quiet: found by direct search where the width falls below 10 %.
    pairs = [(1.3, 1.0), *[(1.0, 1.0)] * 200]
    expected = next(
        n
        for n in range(5, 41)
        if ratio_interval([a for a, _ in pairs[:n]], [b for _, b in pairs[:n]]).relative_width <= 0.10
    )
    done = run_series(pairs)
    assert 5 < expected < 40
    assert [len(one) for one in (done.exploration, *done.fresh)] == [expected] * (1 + NUM_SERIES)
    assert done.verdict == "ok"


def test_a_series_that_never_narrows_is_noisy_at_the_maximum_without_fresh_ones() -> None:
    done = run_series([(2.0, 1.0), (1.0, 2.0)] * 20)
    assert len(done.exploration) == 40
    assert done.fresh == ()
    assert done.reported == (done.exploration,)
    assert done.verdict == "NOISY"
    assert done.reason is not None
    assert "the first series" in done.reason
    assert "40 pairs" in done.reason


def test_a_machine_that_changes_between_series_is_noisy_and_keeps_its_numbers() -> None:
    levels = [1.47, 1.62, 1.46, 1.63, 1.47, 1.63]
    done = run_series([(level, 1.0) for level in [1.5, *levels] for _ in range(5)])
    assert done.reported == done.fresh
    assert done.verdict == "NOISY"
    assert done.reason is not None
    assert f"{NUM_SERIES} fresh series" in done.reason


def test_each_series_counts_its_pairs_from_zero() -> None:
    seen: list[int] = []

    def measure_pair(index: int) -> tuple[float, float]:
        seen.append(index)
        return 1.0, 1.0

    measure_in_pairs(measure_pair, duration=float, rule=RULE)
    assert seen == [0, 1, 2, 3, 4] * (1 + NUM_SERIES)
