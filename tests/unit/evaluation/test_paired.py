"""Paired comparisons against sums over all outcomes, and simulated coverage."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from scipy import stats

from compressor.choices.tasks import expand_tasks
from compressor.evaluation.paired import compare_items


def answers(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[float], list[float]]:
    counts = ((both, 1, 1), (only_first, 1, 0), (only_second, 0, 1), (neither, 0, 0))
    pairs = [(float(first), float(second)) for count, first, second in counts for _ in range(count)]
    return [first for first, _ in pairs], [second for _, second in pairs]


@pytest.mark.parametrize(("lost", "won"), [(8, 2), (1, 9), (5, 5), (1, 0), (3, 4)])
def test_the_exact_test_counts_the_outcomes_that_are_no_likelier(lost: int, won: int) -> None:
    found = compare_items(*answers(30, lost, won, 20))
    weights = [comb(lost + won, k) for k in range(lost + won + 1)]
    expected = sum(weight for weight in weights if weight <= weights[lost]) / 2 ** (lost + won)
    assert found.p_value == pytest.approx(expected)
    assert (found.only_first, found.only_second) == (lost, won)
    assert found.difference == pytest.approx((won - lost) / (50 + lost + won))


def test_without_any_difference_there_is_no_test() -> None:
    found = compare_items(*answers(7, 0, 0, 3))
    assert (found.difference, found.p_value) == (0, None)
    assert found.low < 0 < found.high


@pytest.mark.parametrize("probabilities", [(0.5, 0.2, 0.1, 0.2), (0.8, 0.1, 0.05, 0.05)])
def test_intervals_cover_the_truth(probabilities: tuple[float, ...]) -> None:
    generator, covered = np.random.default_rng(0), 0
    truth = probabilities[2] - probabilities[1]
    for counts in generator.multinomial(80, probabilities, size=400):
        found = compare_items(*answers(*counts))
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / 400 <= 0.99


def test_scores_that_are_no_answers_are_compared_by_students_t() -> None:
    first, second = [0.1, 0.5, 0.9, 0.3], [0.2, 0.4, 1.0, 0.7]
    found = compare_items(first, second)
    differences = np.subtract(second, first)
    error = differences.std(ddof=1) / 2
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(differences.mean() / error), 3))
    assert found.high - found.difference == pytest.approx(stats.t.ppf(0.975, 3) * error)
    assert found.only_first is None


@pytest.mark.parametrize(
    "specs", [("piqa:x",), ("piqa:",), ("piqa", "piqa:1"), ("published:3",), ("published", "mmlu")]
)
def test_tasks_that_contradict_each_other_are_refused(specs: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"is not|named twice|sets the shots"):
        expand_tasks(specs)
