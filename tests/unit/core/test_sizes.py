"""Bytes as text: no model is so small that it shows as nothing."""

from __future__ import annotations

import pytest

from compressor.core.sizes import shown_size


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (90, "90 B"),
        (103, "103 B"),
        (3 * 1024, "3.0 KiB"),
        (0.12 * 1024**2, "122.9 KiB"),
        (1024**2, "1.0 MiB"),
        (12.5 * 1024**2, "12.5 MiB"),
        (0.25 * 1024**3, "0.25 GiB"),
        (14.956 * 1024**3, "14.96 GiB"),
    ],
)
def test_the_unit_follows_the_size(num_bytes: float, text: str) -> None:
    assert shown_size(num_bytes) == text


def test_no_size_is_shown_as_zero() -> None:
    for exponent in range(45):
        assert float(shown_size(2**exponent).split()[0]) > 0


def test_what_is_shown_is_within_a_twentieth_of_the_size() -> None:
    units = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    for step in range(1, 400):
        num_bytes = round(20 * 1.07**step)
        number, unit = shown_size(num_bytes).split()
        assert float(number) * units[unit] == pytest.approx(num_bytes, rel=0.051)
