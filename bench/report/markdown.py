"""The Markdown report. Numbers are formatted here and nowhere else; the template only places them."""

from __future__ import annotations

from bench.report.numbers import NO_NUMBER, show_interval, show_number
from bench.report.results import Absent, ArmCell, CellResult, Interval, Results, Roofline
from bench.report.tables import MetricTable, pairs_of, verdict_on
from bench.report.template import render
from compressor.core.escaping import Markdown, markdown_row, markdown_text

TEMPLATE_FILE = "report.md.j2"


def render_markdown(results: Results) -> str:
    """The whole report as Markdown, ending in a newline."""
    return render(TEMPLATE_FILE, results, escape=False, finalize=_shown, row=_row, roofline=_roofline)


def _shown(value: object) -> object:
    """What the template places: text letter by letter."""
    return markdown_text(value) if isinstance(value, str) else value


def _row(cell: CellResult, table: MetricTable, max_relative_width: float) -> Markdown:
    """One line of a metric's table; a failed cell keeps its line."""
    columns = [
        f"{cell.isl}/{cell.osl}",
        cell.batches,
        _spread(cell.baseline, table),
        _spread(cell.candidate, table),
        _ratio(cell, table.metric),
        pairs_of(cell),
        verdict_on(cell, table.metric, max_relative_width=max_relative_width),
    ]
    return markdown_row(columns)


def _spread(arm: ArmCell | None, table: MetricTable) -> str:
    if arm is None:
        return NO_NUMBER
    summary = arm.metrics.get(table.metric)
    if summary is None or isinstance(summary, Absent):
        return NO_NUMBER
    return f"{show_number(summary.median * table.scale)} ± {summary.cv:.1%}"


def _ratio(cell: CellResult, metric: str) -> str:
    ratio = cell.ratios.get(metric)
    return show_interval(ratio) if isinstance(ratio, Interval) else NO_NUMBER


def _roofline(cell: CellResult) -> Markdown:
    """One line of the roofline's table."""
    roofline = cell.roofline
    columns = [cell.label, *[NO_NUMBER] * 4]
    if isinstance(roofline, Roofline):
        shares = (roofline.reached, roofline.baseline_share, roofline.candidate_share)
        columns[1:] = [f"{roofline.best_speedup:.2f}x", *(f"{share:.0%}" for share in shares)]
    return markdown_row(columns)
