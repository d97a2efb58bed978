"""The gate's report: Markdown for people and for a GitHub step summary, plain values for JSON."""

from __future__ import annotations

from dataclasses import asdict

from bench.compare.gate import CellVerdict, Change, GateReport
from compressor.core.escaping import Markdown, markdown_row, markdown_text

SCHEMA = "compress-export/bench-compare/1"


def gate_document(report: GateReport) -> dict[str, object]:
    """The whole report as JSON values."""
    return {"schema": SCHEMA, "verdict": report.verdict, **asdict(report)}


def render_gate(report: GateReport) -> str:
    """The report as Markdown, ending in a newline."""
    lines = [f"## Speed gate: {report.verdict}", ""]
    lines += [f"* {markdown_text(mismatch)}" for mismatch in report.mismatches]
    if report.mismatches:
        lines += ["", "Measure the baseline again on this machine with these versions.", ""]
    lines += [
        "| pair | cell | verdict | ratio, now : before | throughput, now : before | why |",
        "|---|---|---|---|---|---|",
        *(_row(cell) for cell in report.cells),
    ]
    return "\n".join(lines) + "\n"


def _row(cell: CellVerdict) -> str:
    columns = (
        f"{cell.candidate} : {cell.baseline}",
        cell.cell,
        Markdown(f"**{cell.verdict}**"),
        _change(cell.ratio_change),
        _change(cell.absolute_change),
        cell.reason,
    )
    return markdown_row(columns)


def _change(change: Change | None) -> str:
    return f"{change.ratio:.3f} [{change.low:.3f}, {change.high:.3f}]" if change else "–"
