"""Counts of planted and found faults, and why each miss is one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from compressor.core.hardware import describe
from compressor.runs.artifact import write_json
from compressor.runs.manifest import versions
from tests.corruptions.suite import CONTROL, Outcome

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
SCHEMA = "compress-export/result/1"
_MISS = ("kind", "fault", "way")


def misses(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Every fault that was not refused as one, and every control that was."""
    return [one for one in outcomes if not (one.exit_code == 0 if one.fault == CONTROL else one.found)]


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


def write_result(
    name: str, command: str, data: dict[str, Any], *, directory: Path = RESULTS, **facts: object
) -> None:
    """Keep what was measured, with its command, day and machine."""
    today = datetime.now(timezone.utc).date().isoformat()
    machine = {"hardware": describe().to_json(), "versions": versions()}
    document = {"schema": SCHEMA, "command": command, "date": today, **machine, **facts, "data": data}
    write_json(directory / f"{name}.json", document)


def kept(outcomes: Sequence[Outcome]) -> None:
    """Write the result's JSON, and the table made of it."""
    from tests.performance.tables import write_tables

    missed = [{name: getattr(one, name) for name in _MISS} for one in misses(outcomes)]
    found = {"counts": counts(outcomes), "misses": missed, "outcomes": [asdict(one) for one in outcomes]}
    write_result("corruptions", "make corruptions", found)
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
    return [f"- {miss['kind']}: {miss['fault']} ({miss['way']})" for miss in data["misses"]]
