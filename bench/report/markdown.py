"""The Markdown report. Numbers are formatted here and nowhere else; the template only places them."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench.report.numbers import (
    NO_NUMBER,
    or_unknown,
    show_gib,
    show_interval,
    show_number,
    show_peak,
    show_size,
)
from bench.report.results import AbsentRecord, ArmCell, CellResult, Interval, Results, Roofline
from bench.report.tables import TABLES, MetricTable, pairs_of, verdict_on
from bench.report.waterfall import waterfalls_of
from bench.report.wording import wording_of
from compressor.core.escaping import Markdown, markdown_row, markdown_text

TEMPLATE_FILE = "report.md.j2"


def render_markdown(results: Results) -> str:
    """The whole report as Markdown, ending in a newline."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  Markdown, not HTML: see `_shown`
        finalize=_shown,
    )
    environment.filters.update(
        gib=show_gib,
        or_unknown=or_unknown,
        interval=show_interval,
        number=show_number,
        peak=show_peak,
        size=show_size,
    )
    template = environment.get_template(TEMPLATE_FILE)
    return template.render(
        results=results,
        tables=TABLES,
        wording=wording_of(results),
        row=_row,
        roofline=_roofline,
        has_roofline=any(cell.roofline for one in results.comparisons for cell in one.cells),
        waterfalls=waterfalls_of(results),
    )


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
    if summary is None or isinstance(summary, AbsentRecord):
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
