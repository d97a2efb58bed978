"""The HTML report: one page that opens from disk, asks nothing of a network and runs no script.

Every number of a table carries the unrounded value of `results.json` in its `data-value`.
"""

from __future__ import annotations

from markupsafe import Markup

from bench.report.charts import charts_of
from bench.report.numbers import NO_NUMBER, show_interval, show_number
from bench.report.results import Absent, ArmCell, CellResult, Interval, Results, Roofline
from bench.report.tables import pairs_of, verdict_on
from bench.report.template import render

TEMPLATE_FILE = "page.html.j2"


def render_html(results: Results) -> str:
    """The whole page."""
    charts = [
        {"title": chart.title, "caption": chart.caption, "svg": Markup(chart.svg)}  # noqa: S704 - ours
        for chart in charts_of(results)
    ]
    return render(
        TEMPLATE_FILE,
        results,
        escape=True,
        charts=charts,
        spread=_spread,
        ratio=_ratio,
        pairs=pairs_of,
        verdict=verdict_on,
        roofline=_roofline,
    )


def _number(value: float, shown: str) -> Markup:
    return Markup('<td class="n" data-value="{}">{}</td>').format(repr(value), shown)


def _nothing(why: str) -> Markup:
    return Markup('<td class="n" title="{}">{}</td>').format(why, NO_NUMBER)


def _spread(arm: ArmCell | None, metric: str, scale: float) -> Markup:
    """A median with its coefficient of variation."""
    summary = arm.metrics.get(metric) if arm else None
    if summary is None:
        return _nothing("not measured")
    if isinstance(summary, Absent):
        return _nothing(summary.absent)
    return _number(summary.median, f"{show_number(summary.median * scale)} ± {summary.cv:.1%}")


def _ratio(cell: CellResult, metric: str) -> Markup:
    """A paired ratio with its interval."""
    ratio = cell.ratios.get(metric)
    if isinstance(ratio, Interval):
        return _number(ratio.ratio, show_interval(ratio))
    return _nothing(ratio.absent if ratio else "not measured")


def _roofline(cell: CellResult) -> Markup:
    """Best possible speed-up, share of it reached, and each arm's share of its floor."""
    roofline = cell.roofline
    if not isinstance(roofline, Roofline):
        return _nothing(roofline.absent if roofline else "not measured") * 4
    shares = (roofline.reached, roofline.baseline_share, roofline.candidate_share)
    best = _number(roofline.best_speedup, f"{roofline.best_speedup:.2f}x")
    return best + Markup("").join(_number(share, f"{share:.0%}") for share in shares)
