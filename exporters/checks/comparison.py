"""Two models on the same items: difference, interval and test, by other formulas than the stage's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import comb

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from compressor.core.errors import VerificationError
from compressor.evaluation.task_record import Paired
from exporters.checks.equality import expect_equal
from exporters.checks.record import check_close

_TWO_SIDED = 0.975
_OF_TEST = 1e-6  # a tail of the distribution magnifies how scores were rounded
_ALIKE = 1e-14  # rounding noise of differences that are all the same


def check_comparison(found: Paired, before: Sequence[float], now: Sequence[float], *, where: str) -> None:
    """Refuse what scores of the same items do not give."""
    expect_equal("the compared items are others", len(now), found.num_items, where=where)
    check_close(sum(now) / len(now) - sum(before) / len(before), found.difference, where=where)
    if {*before, *now} <= {0.0, 1.0}:
        _check_answers(found, np.subtract(now, before), where=where)
    else:
        check_mean_difference(found, np.subtract(now, before), where=where)


def check_mean_difference(found: Paired, differences: NDArray[np.float64], *, where: str) -> None:
    """Refuse an interval or a test that is not Student's, of a mean with the spread of `differences`."""
    expect_equal("items are right or wrong", [None, None], [found.only_first, found.only_this], where=where)
    number = len(differences)
    if number == 1 or np.ptp(differences) < _ALIKE:
        _check_ends(found, found.difference, found.difference, where=where)
        return
    error = float(differences.std(ddof=1)) / math.sqrt(number)
    reach = float(stats.t.ppf(_TWO_SIDED, number - 1)) * error
    _check_ends(found, found.difference - reach, found.difference + reach, where=where)
    tail = float(stats.t.sf(abs(found.difference) / error, number - 1))
    _check_p_value(2 * tail, found.p_value, where=where)


def _check_answers(found: Paired, differences: NDArray[np.float64], *, where: str) -> None:
    """Items are right or wrong: McNemar's exact test, and the interval of Agresti and Min."""
    lost, won = int((differences < 0).sum()), int((differences > 0).sum())
    expect_equal(
        "the differing items are others", [lost, won], [found.only_first, found.only_this], where=where
    )
    if not lost + won:
        expect_equal("there is nothing to test", None, found.p_value, where=where)
    else:
        tail = sum(comb(lost + won, k) for k in range(min(lost, won) + 1)) / 2 ** (lost + won)
        _check_p_value(min(1.0, 2 * tail), found.p_value, where=where)
    # Half an item more in each of the four cells, of which two are alike.
    weights = np.array([lost + 0.5, len(differences) - lost - won + 1, won + 0.5])
    values = np.array([-1.0, 0.0, 1.0])
    mean = float(np.average(values, weights=weights))
    variance = float(np.average((values - mean) ** 2, weights=weights) / weights.sum())
    reach = float(stats.norm.ppf(_TWO_SIDED)) * math.sqrt(variance)
    _check_ends(found, max(-1.0, mean - reach), min(1.0, mean + reach), where=where)


def _check_ends(found: Paired, low: float, high: float, *, where: str) -> None:
    check_close(low, found.low, where=f"{where}, low")
    check_close(high, found.high, where=f"{where}, high")


def _check_p_value(expected: float, found: float | None, *, where: str) -> None:
    if found is None or not math.isclose(expected, found, rel_tol=_OF_TEST, abs_tol=1e-12):
        raise VerificationError(
            "a recorded figure is not what was found",
            where=f"{where}, p_value",
            expected=expected,
            found=found,
        )
