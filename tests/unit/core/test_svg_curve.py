"""Curves with bands: marks lie where the axes' own numbers say, and names are text."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from compressor.core.svg import Point
from compressor.core.svg_curve import Curve, curve_chart, ticks_between

VALUES = [(0.0, 9.4), (10.0, 7.25), (160.0, 6.9)]
BAND = [(9.0, 9.8), (7.0, 7.5), (6.1, 7.6)]


def drawn() -> ET.Element:
    points = [Point(x=x, y=y, label=f"<{y}>") for x, y in VALUES]
    curve = Curve(name="a <b> & c", points=points, is_dashed=True, band=BAND)
    return ET.fromstring(curve_chart([curve], x_title="step", y_title="loss [nats]"))  # noqa: S314 - ours


def scales(svg: ET.Element) -> tuple[np.ndarray, np.ndarray]:
    """What the numbers at the axes say: slope and offset from pixels to values, of x and of y."""
    texts = [text for text in svg.iter("text") if re.fullmatch(r"[\d.,]+", text.text or "")]
    across = [text for text in texts if "middle" in text.attrib["class"]]
    up = [text for text in texts if "end" in text.attrib["class"]]
    x = np.polyfit([float(text.attrib["x"]) for text in across], [float(text.text) for text in across], 1)
    y = np.polyfit([float(text.attrib["y"]) - 4 for text in up], [float(text.text) for text in up], 1)
    return x, y


def test_marks_line_and_band_lie_where_the_axes_say() -> None:
    svg = drawn()
    x, y = scales(svg)
    marks = [(float(mark.attrib["cx"]), float(mark.attrib["cy"])) for mark in svg.iter("circle")]
    line = [
        tuple(map(float, pair.split(","))) for pair in next(svg.iter("polyline")).attrib["points"].split()
    ]
    assert line == marks
    for (left, top), (step, loss) in zip(marks, VALUES, strict=True):
        assert (np.polyval(x, left), np.polyval(y, top)) == pytest.approx((step, loss), abs=0.3)
        assert np.polyval(y, top) == pytest.approx(loss, abs=0.01)
    corners = [
        tuple(map(float, pair.split(","))) for pair in next(svg.iter("polygon")).attrib["points"].split()
    ]
    bounds = [high for _, high in BAND] + [low for low, _ in reversed(BAND)]
    assert [np.polyval(y, top) for _, top in corners] == pytest.approx(bounds, abs=0.01)


def test_names_and_labels_are_text() -> None:
    svg = drawn()
    titles = [title.text for title in svg.iter("title")]
    assert titles[:3] == ["<9.4>", "<7.25>", "<6.9>"]
    assert "a <b> & c" in "".join(svg.itertext())
    assert "dashed" in next(svg.iter("polyline")).attrib["class"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(6.1, 9.8, [6, 7, 8, 9, 10]), (0.02, 0.031, [0.02, 0.025, 0.03, 0.035]), (3.0, 3.0, [3, 4])],
)
def test_ticks_enclose_a_range(low: float, high: float, expected: list[float]) -> None:
    assert ticks_between(low, high) == pytest.approx(expected)
