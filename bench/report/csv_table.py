"""The CSV: one line for every metric of every cell, with unrounded numbers in SI units."""

from __future__ import annotations

import csv
import io

from bench.report.results import Absent, ArmCell, CellResult, ComparisonResult, Results
from compressor.core.escaping import spreadsheet_cell

COLUMNS = (
    *("baseline", "candidate", "isl", "osl", "baseline_batch_size", "candidate_batch_size", "status"),
    *("metric", "baseline_median", "baseline_cv", "candidate_median", "candidate_cv"),
    *("ratio", "ratio_low", "ratio_high", "num_series", "num_pairs", "reason"),
)
NO_VALUE = ""


def render_csv(results: Results) -> str:
    """The whole table; a failed cell keeps one line with its reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for comparison in results.comparisons:
        for cell in comparison.cells:
            writer.writerows([spreadsheet_cell(value) for value in line] for line in _lines(comparison, cell))
    return text.getvalue()


def _lines(comparison: ComparisonResult, cell: CellResult) -> list[list[object]]:
    where: list[object] = [
        comparison.baseline,
        comparison.candidate,
        cell.isl,
        cell.osl,
        cell.batch_size,
        cell.candidate_batch_size or cell.batch_size,
        cell.status,
    ]
    if not cell.ratios:
        return [[*where, *[NO_VALUE] * 10, cell.reason]]
    return [[*where, metric, *_numbers(cell, metric)] for metric in cell.ratios]


def _numbers(cell: CellResult, metric: str) -> list[object]:
    ratio = cell.ratios[metric]
    numbers: list[object] = [*_spread(cell.baseline, metric), *_spread(cell.candidate, metric)]
    if isinstance(ratio, Absent):
        return [*numbers, *[NO_VALUE] * 5, ratio.absent]
    interval = [ratio.ratio, ratio.low, ratio.high, cell.num_series, ratio.num_pairs]
    return [*numbers, *interval, cell.reason or NO_VALUE]


def _spread(arm: ArmCell | None, metric: str) -> tuple[object, object]:
    summary = arm.metrics[metric] if arm else None
    if summary is None or isinstance(summary, Absent):
        return NO_VALUE, NO_VALUE
    return summary.median, summary.cv
