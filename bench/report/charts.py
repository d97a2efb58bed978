"""Which charts a benchmark has; numbers come from the results as they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench.report.numbers import show_interval, show_number
from bench.report.results import Absent, ArmCell, Results
from bench.report.tables import Wording, wording_of
from bench.report.waterfall import Waterfall, waterfalls_of
from compressor.core.svg import Bar, Point, Series, bar_chart, pareto_front, xy_chart

_RATE = "output_tokens_per_s"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One drawing with its heading and a sentence below it."""

    title: str
    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One arm at one batch size: medians over all comparisons that measured it."""

    arm: str
    isl: int
    osl: int
    batch_size: int
    output_tokens_per_s: float
    latency_s: float
    is_noisy: bool

    @property
    def label(self) -> str:
        """What is shown when the mark is pointed at."""
        noisy = ", NOISY" if self.is_noisy else ""
        return (
            f"{self.arm}, batch {self.batch_size}: {show_number(self.output_tokens_per_s)} tok/s, "
            f"{show_number(self.latency_s)} s{noisy}"
        )


def charts_of(results: Results) -> list[Chart]:
    """Throughput by batch, latency against throughput, waterfalls, and quality against speed."""
    by_lengths: dict[tuple[int, int], list[Measured]] = defaultdict(list)
    for measured in measured_arms(results):
        by_lengths[measured.isl, measured.osl].append(measured)
    wording = wording_of(results)
    charts = [_throughput(lengths, found, wording) for lengths, found in by_lengths.items()]
    charts += [_latency(lengths, found, wording) for lengths, found in by_lengths.items()]
    charts += [_waterfall(waterfall, wording) for waterfall in waterfalls_of(results)]
    charts += [chart for found in by_lengths.values() if (chart := _quality(results, found, wording))]
    return charts


def measured_arms(results: Results) -> list[Measured]:
    """Every arm at every lengths and batch size that has numbers."""
    pooled: dict[tuple[str, int, int, int], list[tuple[float, float, bool]]] = defaultdict(list)
    for comparison in results.comparisons:
        for cell in comparison.cells:
            for name, arm, batch_size in (
                (comparison.baseline, cell.baseline, cell.batch_size),
                (comparison.candidate, cell.candidate, cell.candidate_batch_size or cell.batch_size),
            ):
                if arm is not None:
                    numbers = median_of(arm, _RATE), median_of(arm, "latency_s"), cell.status == "NOISY"
                    pooled[name, cell.isl, cell.osl, batch_size].append(numbers)
    return [
        Measured(
            arm=arm,
            isl=isl,
            osl=osl,
            batch_size=batch_size,
            output_tokens_per_s=float(np.median([rate for rate, _, _ in found])),
            latency_s=float(np.median([latency for _, latency, _ in found])),
            is_noisy=all(is_noisy for _, _, is_noisy in found),
        )
        for (arm, isl, osl, batch_size), found in pooled.items()
    ]


def median_of(arm: ArmCell, metric: str) -> float:
    """The median of a metric that every measured cell has."""
    summary = arm.metrics[metric]
    assert not isinstance(summary, Absent)
    return summary.median


def _throughput(lengths: tuple[int, int], found: list[Measured], wording: Wording) -> Chart:
    points = _points(found, lambda one: one.batch_size)
    return Chart(
        title=f"Throughput by {wording.size}, {lengths[0]}/{lengths[1]}",
        svg=xy_chart(
            _by_arm(points),
            x_title=wording.axis,
            y_title=wording.throughput,
            x_categories=sorted({one.batch_size for one in found}),
        ),
        caption="Medians; hollow marks are NOISY.",
    )


def _latency(lengths: tuple[int, int], found: list[Measured], wording: Wording) -> Chart:
    points = _points(found, lambda one: one.latency_s / one.osl * 1000)
    return Chart(
        title=f"Latency against throughput, {lengths[0]}/{lengths[1]}",
        svg=xy_chart(
            _by_arm(points),
            x_title="latency per output token [ms]",
            y_title=wording.throughput,
            front=pareto_front([point for point in points.values() if not point.is_hollow]),
        ),
        caption=(
            f"Up and to the left is better; {wording.axis} grows along a line. "
            "NOISY marks are left out of the front."
        ),
    )


def _points(found: list[Measured], x: Callable[[Measured], float]) -> dict[Measured, Point]:
    return {
        one: Point(x=x(one), y=one.output_tokens_per_s, label=one.label, is_hollow=one.is_noisy)
        for one in sorted(found, key=lambda one: one.batch_size)
    }


def _by_arm(points: dict[Measured, Point], *, is_joined: bool = True) -> list[Series]:
    by_arm: dict[str, list[Point]] = defaultdict(list)
    for one, point in points.items():
        by_arm[one.arm].append(point)
    return [Series(name=name, points=own, is_joined=is_joined) for name, own in by_arm.items()]


def _waterfall(waterfall: Waterfall, wording: Wording) -> Chart:
    first = waterfall.steps[0]
    bars = [Bar(name=first.baseline, value=_rate(first.cell.baseline), note="1x")]
    for step in waterfall.steps:
        assert step.cell.speedup is not None, "every step of a waterfall is measured"
        is_noisy = step.cell.status == "NOISY"
        note = "NOISY" if is_noisy else f"{step.cell.speedup.ratio:.2f}x"
        name = f"{step.candidate} ({step.change})"
        bars.append(Bar(name=name, value=_rate(step.cell.candidate), note=note, is_hollow=is_noisy))
    total = waterfall.total.cell.speedup
    assert total is not None, "and so is its total"
    is_noisy = waterfall.total.cell.status == "NOISY"
    return Chart(
        title=f"What each change bought, {waterfall.label}",
        svg=bar_chart(bars, y_title=wording.throughput),
        caption=(
            "Above each bar its measured ratio to the bar before it. "
            f"From the first straight to the last: {'NOISY, ' if is_noisy else ''}{show_interval(total)}, "
            "measured, not multiplied."
        ),
    )


def _rate(arm: ArmCell | None) -> float:
    assert arm is not None
    return median_of(arm, _RATE)


def _quality(results: Results, found: list[Measured], wording: Wording) -> Chart | None:
    """Quality against speed at the smallest batch of these lengths; None without evaluated models."""
    quality = {entry.model: entry for entry in results.quality}
    batch_size = min(one.batch_size for one in found)
    points = {
        one: Point(
            x=one.output_tokens_per_s,
            y=quality[model].value,
            label=f"{one.arm}: {quality[model].metric} {show_number(quality[model].value)}",
            is_hollow=one.is_noisy,
        )
        for one in found
        if one.batch_size == batch_size and (model := results.arm(one.arm).model) in quality
    }
    if not points:
        return None
    metrics = ", ".join(sorted({entry.title for entry in results.quality}))
    return Chart(
        title=f"Quality against speed, {found[0].isl}/{found[0].osl}, {wording.size} {batch_size}",
        svg=xy_chart(_by_arm(points, is_joined=False), x_title="output tok/s", y_title=metrics),
        caption="Quality was measured on the checkpoint each arm was exported from, in its training dtype.",
    )
