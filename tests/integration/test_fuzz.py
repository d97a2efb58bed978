"""A short part of `make fuzz`: every kind of hostile input, half a minute in all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.fuzz.found import FOUND
from tests.fuzz.kinds import KINDS

ROOT = Path(__file__).resolve().parents[2]
SECONDS_EACH = 1.0


def test_hostile_input_is_accepted_or_refused_clearly() -> None:
    """In a process of its own: an audit hook cannot be removed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--seconds", str(SECONDS_EACH)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counted = [line for line in done.stdout.splitlines() if " examples in " in line]
    assert [line.partition(":")[0] for line in counted] == list(KINDS)
    assert not [line for line in counted if ": 0 examples" in line], done.stdout


def test_every_kind_was_read_for_long_and_is_without_fault() -> None:
    kept = json.loads((ROOT / "docs" / "results" / "fuzz.json").read_text(encoding="utf-8"))["data"]
    assert [row["kind"] for row in kept["kinds"]] == list(FOUND) == list(KINDS)
    assert not [row["kind"] for row in kept["kinds"] if row["faults"]]
    assert kept["found"] == {kind: list(faults) for kind, faults in FOUND.items()}
