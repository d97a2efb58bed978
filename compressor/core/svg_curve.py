"""Curves over steps with bands around what is predicted, as inline SVG; see `compressor.core.svg`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from compressor.core.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    NUM_COLOURS,
    RIGHT,
    TOP,
    WIDTH,
    Place,
    Point,
    framed,
    ticks,
    x_axis,
    y_axis,
)

_NUM_TICKS = 4


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points joined by a line, dashed where they are predicted.

    Attributes:
        band: Lower and upper bound at every point; empty for none.
    """

    name: str
    points: Sequence[Point]
    is_dashed: bool = False
    has_marks: bool = True
    band: Sequence[tuple[float, float]] = ()


def curve_chart(curves: Sequence[Curve], *, x_title: str, y_title: str) -> str:
    """Curves from x = 0 on; the y axis covers what they cover, and titles are name and unit."""
    values = [point.y for curve in curves for point in curve.points]
    values += [bound for curve in curves for pair in curve.band for bound in pair]
    y_ticks = ticks_between(min(values), max(values))
    x_ticks = ticks(max(point.x for curve in curves for point in curve.points))

    def place_x(value: float) -> float:
        return LEFT + value / x_ticks[-1] * (WIDTH - LEFT - RIGHT)

    def place_y(value: float) -> float:
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [y_axis(y_ticks, place_y, y_title), x_axis(x_ticks, place_x, x_title)]
    for index, curve in enumerate(curves):
        parts += _drawn(curve, f"c{index % NUM_COLOURS}", place_x, place_y)
    return framed(parts, [curve.name for curve in curves], f"{y_title} by {x_title}")


def ticks_between(low: float, high: float) -> list[float]:
    """Round numbers that enclose a range, about five of them."""
    size = high - low or abs(high) or 1.0
    step = ticks(size)[1]
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * index, 12) for index in range(first, max(last, first + 1) + 1)]


def _drawn(curve: Curve, colour: str, place_x: Place, place_y: Place) -> list[str]:
    parts = []
    if curve.band:
        pairs = list(zip(curve.points, curve.band, strict=True))
        corners = [(point.x, high) for point, (_, high) in pairs]
        corners += [(point.x, low) for point, (low, _) in reversed(pairs)]
        path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in corners)
        parts.append(f'<polygon class="band {colour}" points="{path}"/>')
    path = " ".join(f"{place_x(point.x):.1f},{place_y(point.y):.1f}" for point in curve.points)
    parts.append(f'<polyline class="line {colour}{" dashed" if curve.is_dashed else ""}" points="{path}"/>')
    if curve.has_marks:
        parts += [
            f'<circle class="mark {colour}" r="3" cx="{place_x(point.x):.1f}" cy="{place_y(point.y):.1f}">'
            f"<title>{escape(point.label)}</title></circle>"
            for point in curve.points
        ]
    return parts
