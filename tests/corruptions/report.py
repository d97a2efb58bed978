"""Counts of planted and found faults, and why each miss is one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from compressor.core.hardware import describe
from compressor.runs.artifact import write_json
from compressor.runs.manifest import versions
from tests.corruptions.suite import CONTROL, Outcome

RESULT_FILE = Path(__file__).resolve().parents[2] / "docs" / "results" / "corruptions.json"
SCHEMA = "compress-export/result/1"

# (kind, fault) -> why it is not found where sums are consistent.
REASONS: dict[tuple[str, str], str] = {}


@dataclass(frozen=True, kw_only=True)
class Miss:
    """A planted fault that was not found, and why there is nothing to find it by; empty where there is."""

    outcome: Outcome
    reason: str


def misses(outcomes: Iterable[Outcome]) -> list[Miss]:
    """Every fault that was not refused as one, and every control that was."""
    return [
        Miss(outcome=outcome, reason=_reason(outcome))
        for outcome in outcomes
        if not (outcome.exit_code == 0 if outcome.fault == CONTROL else outcome.found)
    ]


def _reason(outcome: Outcome) -> str:
    if outcome.way == "plain" or outcome.exit_code != 0:
        return ""
    return REASONS.get((outcome.kind, outcome.fault), "")


def counts(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Planted and found by kind, plain and with consistent sums; without the controls."""
    rows = []
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        row: dict[str, Any] = {"kind": kind}
        for way in ("plain", "consistent"):
            planted = [o for o in outcomes if (o.kind, o.way) == (kind, way) and o.fault != CONTROL]
            row[way] = {"planted": len(planted), "found": sum(o.found for o in planted)}
        rows.append(row)
    return rows


def _row(miss: Miss) -> dict[str, str]:
    outcome = miss.outcome
    return {"kind": outcome.kind, "fault": outcome.fault, "way": outcome.way, "reason": miss.reason}


def kept(outcomes: Sequence[Outcome]) -> None:
    """Write the result's JSON, and the table made of it."""
    from tests.performance.results import write_tables

    write_json(
        RESULT_FILE,
        {
            "schema": SCHEMA,
            "command": "make corruptions",
            "date": datetime.now(timezone.utc).date().isoformat(),
            "hardware": describe().to_json(),
            "versions": versions(),
            "data": {
                "counts": counts(outcomes),
                "misses": [_row(miss) for miss in misses(outcomes)],
                "outcomes": [asdict(outcome) for outcome in outcomes],
            },
        },
    )
    write_tables()


def corruption_rows(data: dict[str, Any]) -> tuple[Sequence[str], list[tuple[str, str, str]]]:
    """Header and rows of the table: found of planted, by kind, and together."""
    rows = [
        (row["kind"], *(f"{row[way]['found']} of {row[way]['planted']}" for way in ("plain", "consistent")))
        for row in data["counts"]
    ]
    totals = [
        "{} of {}".format(*(sum(row[way][what] for row in data["counts"]) for what in ("found", "planted")))
        for way in ("plain", "consistent")
    ]
    header = ("artifact", "files altered: found", "written wrongly, sums consistent: found")
    return header, [*rows, ("all", totals[0], totals[1])]


def missed_lines(data: dict[str, Any]) -> list[str]:
    return [
        f"- {miss['kind']}: {miss['fault']} ({miss['way']}): {miss['reason'] or 'unexplained'}"
        for miss in data["misses"]
    ]
