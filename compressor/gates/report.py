"""A gate report in words, and as the error that ends a command."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.core.errors import AccuracyGateError, CompressExportError, SpeedGateError
from compressor.gates.record import GateReport, GateRow

HEADER = ("gate", "of", "required", "found", "verdict", "why")
_HINT = (
    "train longer, choose a larger student, or change the gate if what was found is good enough; "
    "`compress-export gate DIR` judges a finished run again"
)


def gate_rows(report: GateReport) -> list[tuple[str, ...]]:
    """The rows of a table under `HEADER`."""
    return [
        (row.gate.replace("_", "-"), row.subject, row.required, row.found, row.verdict, row.reason)
        for row in report.rows
    ]


def gate_error(report: GateReport, *, where: str) -> CompressExportError | None:
    """The error that the failed gates are: of accuracy before those of speed, memory and size; or None."""
    failed = report.failed
    if not failed:
        return None
    of_accuracy = [row for row in failed if row.kind == "accuracy"]
    kind = AccuracyGateError if of_accuracy else SpeedGateError
    shown = of_accuracy or list(failed)
    return kind(
        f"{len(failed)} of {len(report.rows)} gates failed: {report.verdict}",
        where=where,
        expected=_lines(shown, "required"),
        found=_lines(shown, "found"),
        hint=_HINT,
    )


def _lines(rows: Sequence[GateRow], field: str) -> str:
    return "; ".join(f"{row.gate.replace('_', '-')} of {row.subject} {getattr(row, field)}" for row in rows)
