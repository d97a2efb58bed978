"""`verification.json`: what an export was compared with, how, and what came out.

It holds no time, host or path, so that equal exports leave equal records. The files of an export, this
one among them, are recorded in its `artifact.json`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from compressor.core.errors import VerificationError
from compressor.core.json_files import read_json_mapping
from compressor.runs.artifact import write_json
from exporters.verification.comparison import LogitComparison, Tolerance, check_tolerance

VERIFICATION_FILE = "verification.json"
SCHEMA = "compress-export/verification/2"

Status = Literal["passed", "failed", "reported", "not executed"]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """One export against its student.

    Attributes:
        format: Name of the format.
        precision: Precision of the weights.
        prompts: What was fed, as `describe_prompts` says it; absent when nothing was executed.
        logits: Comparisons over all positions (`all`), and over those of text and of random tokens.
        tolerance: What `logits["all"]` must keep to; None is reported only.
        checks: Exact checks that passed, with their counts.
        notes: What a reader should know of the comparison.
    """

    format: str
    precision: str
    prompts: dict[str, int | str] = field(default_factory=dict)
    logits: dict[str, LogitComparison] = field(default_factory=dict)
    tolerance: Tolerance | None = None
    checks: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def executed(self) -> bool:
        """Whether the export was run here."""
        return bool(self.logits)

    @property
    def status(self) -> Status:
        """The outcome in one word or two."""
        if not self.executed:
            return "not executed"
        if self.tolerance is None:
            return "reported"
        try:
            self.enforce()
        except VerificationError:
            return "failed"
        return "passed"

    def enforce(self) -> None:
        """Refuse an export beyond its tolerance.

        Raises:
            VerificationError: naming the figure.
        """
        if self.executed and self.tolerance is not None:
            check_tolerance(self.logits["all"], self.tolerance, where=self.format)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema": SCHEMA,
            "format": self.format,
            "precision": self.precision,
            "status": self.status,
            "executed": self.executed,
            "reference": "the student in float32",
            "prompts": self.prompts,
            "logits": {kind: comparison.to_dict() for kind, comparison in self.logits.items()},
            "tolerance": self.tolerance.to_dict() if self.tolerance else None,
            "checks": self.checks,
            "notes": list(self.notes),
        }


def write_verification(directory: Path, verification: Verification) -> None:
    """Write the record beside what it is about."""
    write_json(directory / VERIFICATION_FILE, verification.to_dict())


def read_verification(directory: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        VerificationError: when it is not one of ours.
    """
    file = directory / VERIFICATION_FILE
    record = read_json_mapping(file, what="the verification record")
    if record.get("schema") != SCHEMA:
        raise VerificationError("the verification record is not ours", where=str(file), expected=SCHEMA)
    return record
