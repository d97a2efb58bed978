from __future__ import annotations

from dataclasses import replace

import pytest

from bench.design.grid import Cell
from bench.measure.timeline import Timeline, verify_timeline
from compressor.core.errors import VerificationError

CELL = Cell(isl=4, osl=2, batch_size=2)
HONEST = Timeline(start_s=0.0, token_times_s=(1.0, 2.0), num_input_tokens=(4, 4), num_output_tokens=(2, 2))


def test_the_requested_work_passes_unchanged() -> None:
    assert verify_timeline(HONEST, CELL) is HONEST


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("num_output_tokens", (2, 1), "output tokens"),
        ("num_output_tokens", (2,), "output tokens"),
        ("num_input_tokens", (4, 3), "input tokens"),
        ("token_times_s", (1.0,), "token steps"),
    ],
)
def test_other_work_than_requested_is_refused(field: str, value: tuple[float, ...], what: str) -> None:
    with pytest.raises(VerificationError, match=what):
        verify_timeline(replace(HONEST, **{field: value}), CELL)
