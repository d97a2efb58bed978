"""`depth.html`: what a model loses with each block of its layers, as charts and a table; without scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from compressor.core.svg import Point, Series, xy_chart
from compressor.pruning.depth_record import Curve, DepthRecord, Measured, best_position

_TEMPLATE = "depth.html.j2"
_LOSS, _ACCURACY = "loss [nats per token]", "accuracy"
_Value = Callable[[Measured], float]


def render_page(record: DepthRecord) -> str:
    """The whole page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    rows = [_row(record, curve) for curve in record.curves]
    return environment.get_template(_TEMPLATE).render(record=record, charts=_charts(record), rows=rows)


def _charts(record: DepthRecord) -> list[tuple[str, Markup]]:
    """Title and drawing of every chart."""
    values: list[tuple[str, _Value]] = [(_LOSS, lambda found: found.loss)]
    if record.num_questions:
        values.append((_ACCURACY, lambda found: found.accuracy or 0.0))
    found = []
    for name, value in values:
        what = name.partition(" [")[0].capitalize()
        found.append((f"{what} without a block of layers", _by_position(record.curves, name, value)))
        if record.removals:
            found.append((f"{what} as layers are removed one by one", _by_count(record, name, value)))
    return found


def _by_position(curves: Sequence[Curve], name: str, value: _Value) -> Markup:
    series = [
        Series(
            name="1 layer" if curve.size == 1 else f"{curve.size} layers",
            points=[
                _point(start, value(found), f"without {_layers(start, curve.size)}", name)
                for start, found in enumerate(curve.without)
            ],
        )
        for curve in curves
    ]
    return _drawn(series, x_title="first removed layer", y_title=name)


def _by_count(record: DepthRecord, name: str, value: _Value) -> Markup:
    points = [_point(0, value(record.whole), "whole", name)]
    points += [
        _point(count, value(removal.without), f"then layer {removal.layer}", name)
        for count, removal in enumerate(record.removals, 1)
    ]
    return _drawn([Series(name="greedy", points=points)], x_title="removed layers", y_title=name)


def _drawn(series: Sequence[Series], *, x_title: str, y_title: str) -> Markup:
    return Markup(xy_chart(series, x_title=x_title, y_title=y_title))  # noqa: S704 - ours


def _point(x: int, y: float, what: str, name: str) -> Point:
    return Point(x=x, y=y, label=f"{what}: {name.partition(' [')[0]} {y:.4f}")


def _row(record: DepthRecord, curve: Curve) -> tuple[str, ...]:
    """Size, the block that is missed least, and what is left without it."""
    start = best_position(curve.without)
    found = curve.without[start]
    accuracy = (f"{found.accuracy:.4f}",) if found.accuracy is not None else ()
    return (
        str(curve.size),
        _layers(start, curve.size),
        f"{found.loss:.4f}",
        f"{found.loss - record.whole.loss:+.4f}",
        f"{found.perplexity:,.3f}",
        *accuracy,
    )


def _layers(start: int, size: int) -> str:
    return f"layer {start}" if size == 1 else f"layers {start} to {start + size - 1}"
