"""Both published updates against weights computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.data.dynamic_weights import updated_weights

LN2, LN3 = math.log(2), math.log(3)
values = st.lists(st.floats(0.01, 12), min_size=4, max_size=4)


def test_paper_by_hand() -> None:
    """Excesses ln 3, ln 2 and a shortfall: factors 3, 2 and 1 on 0.5, 0.3, 0.2, sum 2.3."""
    updated = updated_weights(
        np.asarray([0.5, 0.3, 0.2]), [1 + LN3, 2 + LN2, 1.0], [1.0, 2.0, 1.5], variant="clipped"
    )

    assert updated.tolist() == pytest.approx([1.5 / 2.3, 0.6 / 2.3, 0.2 / 2.3], rel=1e-12)


def test_code_by_hand() -> None:
    """The shortfall ln 2 halves: 1.5, 0.6, 0.1 of 2.2; then 1e-4 of it is spread evenly."""
    updated = updated_weights(
        np.asarray([0.5, 0.3, 0.2]), [1 + LN3, 2 + LN2, 1.0], [1.0, 2.0, 1 + LN2], variant="unclipped"
    )
    expected = [0.9999 * share / 2.2 + 1e-4 / 3 for share in (1.5, 0.6, 0.1)]

    assert updated.tolist() == pytest.approx(expected, rel=1e-12)


def test_only_the_code_lets_shortfalls_lower_a_share() -> None:
    weights, losses, references = np.asarray([0.5, 0.5]), [1.0, 1.0], [1.0, 2.0]

    assert updated_weights(weights, losses, references, variant="clipped").tolist() == [0.5, 0.5]
    assert updated_weights(weights, losses, references, variant="unclipped")[1] < 0.3


@given(weights=values, losses=values, references=values, variant=st.sampled_from(["clipped", "unclipped"]))
def test_shares_sum_to_one_and_a_common_offset_changes_nothing(
    weights: list[float], losses: list[float], references: list[float], variant: str
) -> None:
    shares = np.asarray(weights) / sum(weights)
    updated = updated_weights(shares, losses, references, variant=variant)

    assert updated.sum() == pytest.approx(1)
    assert (updated > 0).all()
    shifted = [[value + 1 for value in row] for row in (losses, references)]
    assert updated_weights(shares, *shifted, variant=variant) == pytest.approx(updated)


def test_a_huge_excess_does_not_overflow() -> None:
    updated = updated_weights(np.asarray([0.5, 0.5]), [2000.0, 1.0], [1.0, 1.0], variant="unclipped")

    assert updated.tolist() == pytest.approx([1 - 5e-5, 5e-5])
