"""The Markdown report. Numbers are formatted here and nowhere else; the template only places them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench.metrics.catalogue import METRICS
from bench.results import AbsentRecord, ArmCell, CellResult, Interval, PeakMemory, Results

TEMPLATE_FILE = "report.md.j2"
NO_NUMBER = "–"
SIGNIFICANT_DIGITS = 3
_GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class MetricTable:
    """How one metric's table is headed and its numbers shown; `scale` goes from SI to the unit shown."""

    metric: str
    title: str
    unit: str
    scale: float = 1.0


TABLES: tuple[MetricTable, ...] = (
    MetricTable(
        metric="output_tokens_per_s",
        title="Output throughput of the whole batch (generated tokens per second)",
        unit="tok/s",
    ),
    MetricTable(
        metric="total_tokens_per_s",
        title="Total throughput of the whole batch (prompt and generated tokens per second)",
        unit="tok/s",
    ),
    MetricTable(metric="latency_s", title="Latency, request to last token", unit="s"),
    MetricTable(metric="ttft_s", title="Time to first token (prefill)", unit="ms", scale=1000),
    MetricTable(
        metric="tpot_s", title="Time per output token after the first (decode step)", unit="ms", scale=1000
    ),
)


def render_markdown(results: Results) -> str:
    """The whole report as Markdown, ending in a newline."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  Markdown, not HTML
    )
    environment.filters.update(
        gib=_gib, or_unknown=_or_unknown, interval=_interval, number=_number, peak=_peak, reason=_one_line
    )
    template = environment.get_template(TEMPLATE_FILE)
    return template.render(
        results=results,
        tables=TABLES,
        definitions={metric.name: metric.definition for metric in METRICS},
        row=_row,
    )


def _row(cell: CellResult, table: MetricTable) -> str:
    """One line of a metric's table; a failed cell keeps its line."""
    columns = [
        f"{cell.isl}/{cell.osl}",
        str(cell.batch_size),
        _spread(cell.baseline, table),
        _spread(cell.candidate, table),
        _ratio(cell, table.metric),
        str(cell.speedup.num_pairs) if cell.speedup else NO_NUMBER,
        cell.status,
    ]
    return "| " + " | ".join(columns) + " |"


def _spread(arm: ArmCell | None, table: MetricTable) -> str:
    if arm is None:
        return NO_NUMBER
    summary = arm.metrics[table.metric]
    if isinstance(summary, AbsentRecord):
        return NO_NUMBER
    return f"{_number(summary.median * table.scale)} ± {summary.cv:.1%}"


def _ratio(cell: CellResult, metric: str) -> str:
    ratio = cell.ratios.get(metric)
    return _interval(ratio) if isinstance(ratio, Interval) else NO_NUMBER


def _interval(interval: Interval) -> str:
    return f"{interval.ratio:.2f}x [{interval.low:.2f}, {interval.high:.2f}]"


def _number(value: float) -> str:
    """Three significant digits or more, never in exponents."""
    if value <= 0:
        return f"{value:.0f}"
    decimals = max(0, SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(value)))
    return f"{value:,.{decimals}f}"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB"


def _peak(memory: PeakMemory | AbsentRecord) -> str:
    if isinstance(memory, AbsentRecord):
        return f"not measured: {_one_line(memory.absent)}"
    cell = f"{memory.isl}/{memory.osl} x {memory.batch_size}"
    return f"{_gib(memory.peak_bytes)} ({_gib(memory.baseline_bytes)} before loading), cell {cell}"


def _or_unknown(value: object) -> str:
    if isinstance(value, float):
        return _number(value)
    return "unknown" if value is None else str(value)


def _one_line(text: str) -> str:
    """Text that cannot break a table."""
    return " ".join(text.split()).replace("|", "\\|")
