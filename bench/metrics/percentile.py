"""Percentiles, only where there are enough samples for the tail to hold one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bench.metrics.absent import Absent

_HALF = 0.5


def percentile(samples: Sequence[float], share: float) -> float | Absent:
    """The value below which `share` of the samples lie, interpolated linearly.

    The p99 needs a hundred samples, the p90 ten; the median any.
    """
    needed = 1 if share == _HALF else math.ceil(round(1 / (1 - share), 6))
    if len(samples) < needed:
        return Absent(f"the {share:.0%} point needs {needed} samples, there are {len(samples)}")
    return float(np.quantile(np.asarray(samples, dtype=np.float64), share))
