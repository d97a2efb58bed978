"""How much a quantity changed between two series of samples that were not taken in pairs."""

from __future__ import annotations

import math
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
    difference = float(now_logs.mean() - before_logs.mean())
    errors = [float(logs.var(ddof=1)) / logs.size for logs in (before_logs, now_logs)]
    variance = sum(errors)
    margin = 0.0
    if variance > 0:
        # Welch-Satterthwaite degrees of freedom.
        freedom = variance**2 / sum(
            error**2 / (logs.size - 1) for error, logs in zip(errors, (before_logs, now_logs), strict=True)
        )
        margin = float(stats.t.ppf((1 + confidence) / 2, freedom)) * math.sqrt(variance)
    return Change(
        ratio=math.exp(difference),
        low=math.exp(difference - margin),
        high=math.exp(difference + margin),
    )
