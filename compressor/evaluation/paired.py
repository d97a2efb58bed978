"""Two models on the same items: the difference of their means, its interval, and a test.

Where items are right or wrong, McNemar's exact test: of the items that only one model has right, each is as
likely to be either's (a binomial test with 1/2). The interval is the adjusted one of Agresti and Min,
Statistics in Medicine 2005: half an item is added to each cell of the table of both models' answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from compressor.evaluation.task_record import Paired

CONFIDENCE = 0.95
_ADDED = 0.5  # to each of the four cells
_RIGHT_OR_WRONG = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The second's mean over the first's; see `task_record.Paired`."""

    difference: float
    low: float
    high: float
    p_value: float | None
    only_first: int | None = None
    only_second: int | None = None


def paired(task: str, model: str, metric: str, first: Sequence[float], own: Sequence[float]) -> Paired:
    """The record of a model's scores beside the first model's, of the same items in the same order."""
    found = compare_items(first, own)
    return Paired(
        task=task,
        model=model,
        metric=metric,
        num_items=len(own),
        difference=found.difference,
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        only_first=found.only_first,
        only_this=found.only_second,
    )


def compare_items(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare scores of the same items in the same order; at least one item."""
    assert len(first) == len(second) > 0, "scores are of the same items"
    if set(first) | set(second) <= set(_RIGHT_OR_WRONG):
        return _of_answers(np.asarray(first, np.float64), np.asarray(second, np.float64))
    return _of_scores(np.asarray(first, np.float64), np.asarray(second, np.float64))


def _of_answers(first: NDArray[np.float64], second: NDArray[np.float64]) -> Comparison:
    num_items = len(first)
    only_first, only_second = int((first > second).sum()), int((second > first).sum())
    differing = only_first + only_second
    p_value = float(stats.binomtest(only_first, differing, 0.5).pvalue) if differing else None
    total = num_items + 4 * _ADDED
    centre = (only_second - only_first) / total
    variance = (differing + 2 * _ADDED - (only_second - only_first) ** 2 / total) / total**2
    reach = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return Comparison(
        difference=(only_second - only_first) / num_items,
        low=max(-1.0, centre - reach),
        high=min(1.0, centre + reach),
        p_value=p_value,
        only_first=only_first,
        only_second=only_second,
    )


def _of_scores(first: NDArray[np.float64], second: NDArray[np.float64]) -> Comparison:
    differences = second - first
    mean = float(differences.mean())
    if len(differences) == 1 or not float(np.ptp(differences)):
        return Comparison(difference=mean, low=mean, high=mean, p_value=None)
    test = stats.ttest_rel(second, first)
    ends = test.confidence_interval(CONFIDENCE)
    return Comparison(difference=mean, low=float(ends.low), high=float(ends.high), p_value=float(test.pvalue))
