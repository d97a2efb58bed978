"""What the table of tasks says of the test where there is nothing to test."""

from __future__ import annotations

import pytest

from compressor.evaluation.task_record import Paired
from compressor.pipeline.task_table import difference_cells


@pytest.mark.parametrize(
    ("difference", "p_value", "said"),
    [(0.0, None, "no item differs"), (-0.5, None, "all differ by as much"), (-0.5, 0.0312, "p = 0.031")],
)
def test_differences_of_items(difference: float, p_value: float | None, said: str) -> None:
    paired = Paired(
        task="own",
        model="student",
        metric="score",
        num_items=2,
        difference=difference,
        low=difference,
        high=difference,
        p_value=p_value,
    )
    points = f"{100 * difference:+.2f}"
    assert difference_cells(paired) == (f"{points} ({points} to {points})", said)
    assert difference_cells(None) == ("-", "-")
