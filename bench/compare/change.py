"""How much a quantity changed between two series of samples that were not taken in pairs."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

# Two-sided, so a slow-down that is not there is called one in a thousand cells.
CONFIDENCE = 0.998


@dataclass(frozen=True, kw_only=True)
class Change:
    """A ratio of geometric means, now over before, with its confidence interval."""

    ratio: float
    low: float
    high: float

    @property
    def is_slower(self) -> bool:
        """Whether a rate fell beyond doubt: the whole interval lies below 1."""
        return self.high < 1


def change_of(
    before_logs: NDArray[np.float64], now_logs: NDArray[np.float64], *, confidence: float = CONFIDENCE
) -> Change:
    """Welch's interval on the difference of means of two series of logarithms.

    Args:
        before_logs: Logarithms of the earlier samples, `[num_before]`, at least two.
        now_logs: Logarithms of the later samples, `[num_now]`, at least two.
        confidence: Coverage of the two-sided interval.
    """
    ratio = math.exp(float(now_logs.mean() - before_logs.mean()))
    if np.ptp(before_logs) == 0 and np.ptp(now_logs) == 0:
        return Change(ratio=ratio, low=ratio, high=ratio)  # t is not defined without any spread
    with warnings.catch_warnings():  # one series may well have no spread of its own
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = stats.ttest_ind(now_logs, before_logs, equal_var=False).confidence_interval(confidence)
    return Change(ratio=ratio, low=math.exp(interval.low), high=math.exp(interval.high))
