"""What gates read and what they say: tables of figures, and a verdict on every requirement."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bench.compare.verdicts import SEVERITY, FailOn, Verdict
from compressor.core.records import Record

SCHEMA: Literal["compress-export/gates/1"] = "compress-export/gates/1"
# Of the intervals that are compared with limits.
CONFIDENCE = 0.95
Kind = Literal["accuracy", "speed", "memory", "size"]
# Verdicts that let a release pass, by what the recipe makes fail; `never` lets all of them.
_PASSING: dict[FailOn, frozenset[Verdict]] = {
    "regression": frozenset({"PASS", "NOISY"}),
    "noisy": frozenset({"PASS"}),
    "never": frozenset(SEVERITY),
}


class Figure(Record):
    """One measured number of one subject.

    Attributes:
        value: The number; None where nothing was measured, and `reason` says why.
        low: Lower end of its 95 % interval; None where it was measured once, or counted.
        high: The upper end.
        samples: The parts that it is a mean of, in the same order in both tables, for paired differences.
        best: The best value that anything could have here, by arithmetic or by the machine's rates.
        against: The subject of the teacher's table that a relative gate compares it with.
        noise: Why the number does not count although there is one.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    samples: tuple[float, ...] = ()
    best: float | None = None
    noise: str | None = None
    against: str = ""
    reason: str | None = None


class Table(Record):
    """Figures of one model, by metric and by subject, such as a precision or an export.

    Attributes:
        conditions: What must be the same in the table that it is judged with.
        information: Nats by which what each subject predicts depends on what it reads.
        figures: Metric -> subject -> figure.
    """

    conditions: dict[str, str]
    information: dict[str, float | None] = Field({})
    figures: dict[str, dict[str, Figure]]


class GateRow(Record):
    """What one gate requires of one subject, what was found, and the verdict with its reason."""

    gate: str
    subject: str
    kind: Kind
    verdict: Verdict
    required: str
    found: str
    reason: str
    limit: float | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None


class GateReport(Record):
    """Every gate's verdict; `fail_on` is what the recipe makes fail."""

    schema_id: Literal["compress-export/gates/1"] = Field(SCHEMA, alias="schema")
    fail_on: FailOn
    rows: tuple[GateRow, ...]

    @property
    def verdict(self) -> Verdict:
        """The most severe of all."""
        return max((row.verdict for row in self.rows), key=SEVERITY.index, default="PASS")

    @property
    def failed(self) -> tuple[GateRow, ...]:
        """The rows that end a command with an error."""
        return tuple(row for row in self.rows if row.verdict not in _PASSING[self.fail_on])
