"""Small charts as inline SVG: no script, no fonts, no files; colours come from the page's style sheet.

A chart is drawn 360 units wide, so that on a phone its text has the size of the page's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 44
LEGEND_LINE = 16
NUM_COLOURS = 6
_TICKS = 4
_LEGEND_LETTERS = 48  # what fits into a line
Place = Callable[[float], float]
_NICE = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One mark; `label` is shown when pointed at, a hollow one is a NOISY number."""

    x: float
    y: float
    label: str
    is_hollow: bool = False


@dataclass(frozen=True, kw_only=True)
class Series:
    """Marks of one arm, joined by a line if `is_joined`."""

    name: str
    points: Sequence[Point]
    is_joined: bool = True


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar; `note` stands above it, and a hollow one is a NOISY number."""

    name: str
    value: float
    note: str
    is_hollow: bool = False


def xy_chart(
    series: Sequence[Series],
    *,
    x_title: str,
    y_title: str,
    x_categories: Sequence[float] | None = None,
    front: Sequence[Point] = (),
) -> str:
    """Points and lines on axes that begin at zero, one colour for each series; titles are name and unit.

    `x_categories` are placed at equal distances instead of to scale, such as batch sizes; the Pareto `front`
    is drawn as a broad band below the lines.
    """
    points = [point for one in series for point in one.points]
    x_ticks = list(x_categories) if x_categories is not None else ticks(max(point.x for point in points))
    y_ticks = ticks(max(point.y for point in points))

    def place_x(value: float) -> float:
        share = (
            (x_ticks.index(value) + 0.5) / len(x_ticks) if x_categories is not None else value / x_ticks[-1]
        )
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def place_y(value: float) -> float:
        return HEIGHT - BOTTOM - value / y_ticks[-1] * (HEIGHT - TOP - BOTTOM)

    parts = [y_axis(y_ticks, place_y, y_title), x_axis(x_ticks, place_x, x_title)]
    if front:
        parts.append(f'<polyline class="front" points="{_path(front, place_x, place_y)}"/>')
    for index, one in enumerate(series):
        colour = f"c{index % NUM_COLOURS}"
        if one.is_joined and len(one.points) > 1:
            parts.append(f'<polyline class="line {colour}" points="{_path(one.points, place_x, place_y)}"/>')
        parts += [
            f'<circle class="mark {colour}{" hollow" if point.is_hollow else ""}" r="4" '
            f'cx="{place_x(point.x):.1f}" cy="{place_y(point.y):.1f}">'
            f"<title>{escape(point.label)}</title></circle>"
            for point in one.points
        ]
    names = [one.name for one in series] + (["Pareto front"] if front else [])
    return framed(parts, names, f"{y_title} by {x_title}", has_front=bool(front))


def bar_chart(bars: Sequence[Bar], *, y_title: str) -> str:
    """One bar after the other, each with its note above it and its name below."""
    y_ticks = ticks(max(bar.value for bar in bars) * 1.15)
    step = (WIDTH - LEFT - RIGHT) / len(bars)

    def place_y(value: float) -> float:
        return HEIGHT - BOTTOM - value / y_ticks[-1] * (HEIGHT - TOP - BOTTOM)

    parts = [y_axis(y_ticks, place_y, y_title)]
    for index, bar in enumerate(bars):
        left, top = LEFT + step * (index + 0.15), place_y(bar.value)
        size = f'width="{step * 0.7:.1f}" height="{HEIGHT - BOTTOM - top:.1f}"'
        centre = LEFT + step * (index + 0.5)
        colour = f"bar c{index % NUM_COLOURS}{' hollow' if bar.is_hollow else ''}"
        parts += [
            f'<rect class="{colour}" x="{left:.1f}" y="{top:.1f}" {size}/>',
            f'<text class="note" x="{centre:.1f}" y="{top - 4:.1f}">{escape(bar.note)}</text>',
            f'<text class="tick middle" x="{centre:.1f}" y="{HEIGHT - BOTTOM + 14}">{index + 1}</text>',
        ]
    return framed(parts, [f"{number}: {bar.name}" for number, bar in enumerate(bars, 1)], y_title)


def ticks(largest: float) -> list[float]:
    """Round numbers from zero to at least `largest`, four or five of them."""
    if largest <= 0:
        return [0.0, 1.0]
    raw = largest / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(nice * power for nice in _NICE if nice * power >= raw * (1 - 1e-12))
    return [step * index for index in range(math.ceil(largest / step - 1e-9) + 1)]


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Points that no other beats: less x (latency) and more y (throughput), by rising x."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def _path(points: Sequence[Point], place_x: Place, place_y: Place) -> str:
    """Corners of a line; a single point twice, so that the round end of a front is drawn."""
    points = [*points, *points] if len(points) == 1 else points
    return " ".join(f"{place_x(point.x):.1f},{place_y(point.y):.1f}" for point in points)


def y_axis(values: Sequence[float], place: Place, title: str) -> str:
    """Grid lines with their numbers, and the title along them."""
    ends = f'x1="{LEFT}" x2="{WIDTH - RIGHT}"'
    lines = [
        f'<line class="grid" {ends} y1="{place(value):.1f}" y2="{place(value):.1f}"/>'
        f'<text class="tick end" x="{LEFT - 6}" y="{place(value) + 4:.1f}">{show_tick(value)}</text>'
        for value in values
    ]
    centre = (HEIGHT - BOTTOM + TOP) / 2
    turned = f'transform="rotate(-90 10 {centre:.0f})"'
    return (
        "".join(lines) + f'<text class="tick middle" x="10" y="{centre:.0f}" {turned}>{escape(title)}</text>'
    )


def x_axis(values: Sequence[float], place: Place, title: str) -> str:
    """The numbers below a chart, and their title."""
    marks = [
        f'<text class="tick middle" x="{place(value):.1f}" y="{HEIGHT - BOTTOM + 14}">'
        f"{show_tick(value)}</text>"
        for value in values
    ]
    centre = (LEFT + WIDTH - RIGHT) / 2
    return (
        "".join(marks)
        + f'<text class="tick middle" x="{centre:.0f}" y="{HEIGHT - 12}">{escape(title)}</text>'
    )


def show_tick(value: float) -> str:
    """A tick without needless zeros."""
    return f"{value:,.10g}"


def _shortened(name: str) -> str:
    """A name that fits into the legend; the middle of a long one is left out."""
    half = _LEGEND_LETTERS // 2
    return name if len(name) <= _LEGEND_LETTERS else f"{name[:half]}…{name[-half + 1 :]}"


def framed(parts: Sequence[str], names: Sequence[str], title: str, *, has_front: bool = False) -> str:
    """The whole drawing: parts, and the legend below them."""
    height = HEIGHT + LEGEND_LINE * len(names)
    legend = []
    for index, name in enumerate(names):
        top = HEIGHT + LEGEND_LINE * index
        is_front = has_front and index == len(names) - 1
        mark = "front-mark" if is_front else f"mark c{index % NUM_COLOURS}"
        legend.append(f'<rect class="{mark}" x="8" y="{top}" width="10" height="10"/>')
        legend.append(
            f'<text class="tick" x="24" y="{top + 9}">{escape(_shortened(name))}'
            f"<title>{escape(name)}</title></text>"
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        + "".join([*parts, *legend])
        + "</svg>"
    )
