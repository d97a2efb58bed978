"""What came of hostile input, kept in docs/results/fuzz.json, and the table made of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tests.corruptions.report import RESULTS, write_result
from tests.fuzz.found import FOUND

if TYPE_CHECKING:
    from tests.fuzz.campaign import Tally

_NAME = "fuzz"


def kept(tallies: Sequence[Tally], *, seconds: float) -> None:
    """Write the counts of these kinds, those of others as they were, and the table made of them."""
    from tests.performance.tables import write_tables

    file = RESULTS / f"{_NAME}.json"
    rows = {}
    if file.is_file():
        rows = {row["kind"]: row for row in json.loads(file.read_text(encoding="utf-8"))["data"]["kinds"]}
    rows |= {tally.kind: _row(tally) for tally in tallies}
    ordered = [rows[kind] for kind in FOUND if kind in rows]
    data = {"kinds": ordered, "found": {kind: list(faults) for kind, faults in FOUND.items()}}
    write_result(_NAME, f"python -m tests.fuzz --keep --seconds {seconds:.0f}", data)
    write_tables()


def _row(tally: Tally) -> dict[str, Any]:
    refused = {str(code): count for code, count in sorted(tally.exit_codes.items()) if code}
    return {
        "kind": tally.kind,
        "seconds": round(tally.seconds),
        "examples": tally.examples,
        "accepted": tally.exit_codes[0],
        "refused": refused,
        "faults": [fault["signature"] for fault in tally.faults],
    }


def fuzz_rows(data: dict[str, Any]) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Header and rows of the table: what was read, and what of it was accepted or refused."""
    rows = [
        (
            row["kind"],
            f"{row['examples']:,}",
            f"{row['seconds']:,}",
            f"{row['accepted']:,}",
            ", ".join(f"{count:,} with {code}" for code, count in row["refused"].items()) or "-",
            str(len(row["faults"])),
            str(len(data["found"][row["kind"]])),
        )
        for row in data["kinds"]
    ]
    header = (
        "input",
        "examples",
        "seconds",
        "accepted",
        "refused, by exit code",
        "faults now",
        "corrected",
    )
    return header, rows


def found_lines(data: dict[str, Any]) -> list[str]:
    """The faults that were found and corrected, by kind."""
    return [f"- {kind}: {fault}" for kind, faults in data["found"].items() for fault in faults]
