"""Intervals of what gates compare, at the confidence of the record."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from compressor.gates.record import CONFIDENCE


def standard_error(samples: NDArray[np.float64]) -> float:
    """Of the mean of `[num_samples]`."""
    return float(samples.std(ddof=1)) / math.sqrt(len(samples))


def mean_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """Student's t interval of a mean; None of a single sample."""
    if len(samples) < 2:  # noqa: PLR2004 - one has no spread
        return None
    values = np.asarray(samples)
    reach = mean_reach(values)
    return float(values.mean()) - reach, float(values.mean()) + reach


def score_interval(items: Sequence[float]) -> tuple[float, float] | None:
    """Of a mean score: Wilson's where every item is right or wrong, else Student's t; None of a single item.

    Wilson's has a width where all items are alike: three right answers of three say little.
    """
    if len(items) > 1 and set(items) <= {0.0, 1.0}:
        return share_interval(int(sum(items)), len(items))
    return mean_interval(items)


def share_interval(number: int, of: int) -> tuple[float, float]:
    """Wilson's interval of a share."""
    ends = stats.binomtest(number, of).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return float(ends.low), float(ends.high)


def difference_reach(differences: NDArray[np.float64]) -> float:
    """Half the interval of a mean of paired differences of scores from 0 to 1.

    Where no item differs, as many may as Wilson's interval of none of them allows.
    """
    return mean_reach(differences) or share_interval(0, len(differences))[1]


def mean_reach(samples: NDArray[np.float64]) -> float:
    """Half of Student's t interval of the mean of `[num_samples]`."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, len(samples) - 1)) * standard_error(samples)
