"""How many points of each fault there were in each scenario, at how many all behaved, and what did not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tests.corruptions.report import RESULTS, write_result
from tests.faults.ground import Outcome
from tests.faults.suite import ALL

_NOT_STRUCK = "-"
_FILE = RESULTS / "faults.json"
Counts = dict[str, dict[str, dict[str, Any]]]


def counts(outcomes: Sequence[Outcome], whole: Mapping[str, bool]) -> Counts:
    """Points and how many behaved, by scenario and fault; and whether these were all that there are."""
    found: Counts = {}
    for outcome in outcomes:
        cell = found.setdefault(outcome.scenario, {}).setdefault(
            outcome.fault, {"points": 0, "behaved": 0, "whole": whole[outcome.fault]}
        )
        cell["points"] += 1
        cell["behaved"] += outcome.behaved
    return found


def kept(outcomes: Sequence[Outcome], *, command: str, seconds: float, whole: Mapping[str, bool]) -> None:
    """Write the result's JSON, and the table made of it; a part replaces only what it struck."""
    from tests.performance.tables import write_tables

    before = json.loads(_FILE.read_text(encoding="utf-8"))["data"] if _FILE.is_file() else {}
    is_all = command == "make faults"
    found = counts(outcomes, whole)
    merged: Counts = {} if is_all else before.get("counts", {})
    for scenario, cells in found.items():
        merged[scenario] = {**merged.get(scenario, {}), **cells}
    problems = [] if is_all else before.get("problems", [])
    problems = [one for one in problems if one["fault"] not in found.get(one["scenario"], {})]
    problems += [asdict(outcome) for outcome in outcomes if not outcome.behaved]
    commands = [one for one in ([] if is_all else before.get("commands", [])) if one != command]
    data = {"commands": [*commands, command], "counts": merged, "problems": problems}
    write_result("faults", command, data, directory=RESULTS, seconds=round(seconds))
    write_tables()


def fault_rows(data: dict[str, Any]) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Header and rows of the table: behaved of planted, by scenario and fault, and together."""
    found: Counts = data["counts"]
    names = [name for name in ALL if any(name in cells for cells in found.values())]
    rows = [(scenario, *(_of(cells.get(name)) for name in names)) for scenario, cells in found.items()]
    totals = []
    for name in names:
        cells = [row[name] for row in found.values() if name in row]
        sums = {what: sum(cell[what] for cell in cells) for what in ("points", "behaved")}
        totals.append({**sums, "whole": True})
    return ("command", *names), [*rows, ("all", *map(_of, totals))]


def problem_lines(data: dict[str, Any]) -> list[str]:
    return [
        f"- {one['scenario']}, {one['fault']}: {one['point']}: {one['problem']}" for one in data["problems"]
    ]


def _of(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return _NOT_STRUCK
    return f"{cell['behaved']} of {cell['points']}{'' if cell['whole'] else ', a spread'}"
