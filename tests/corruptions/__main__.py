"""`make corruptions`: plant every fault, keep what was found in docs/results/corruptions.json.

`python -m tests.corruptions KIND...` prints the outcomes of some kinds of artifacts and keeps nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.conftest import pseudo_text
from tests.corruptions.artifacts import make_artifacts
from tests.corruptions.report import kept, misses
from tests.corruptions.suite import FAULTS, Outcome, run_suite


def plant_all(kinds: Sequence[str]) -> list[Outcome]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        text = root / "text.txt"
        text.write_text(pseudo_text(1500, 0), encoding="utf-8")
        made = [artifact for artifact in make_artifacts(root, text) if artifact.kind in kinds]
        scratch = root / "scratch"
        scratch.mkdir()
        return list(run_suite(made, scratch))


def main() -> int:
    """Plant what was asked for; 1 when a fault was missed."""
    parser = argparse.ArgumentParser(description="Faults planted in every kind of artifact.")
    parser.add_argument("kinds", nargs="*", choices=[*FAULTS, []], help="default: all, and keep the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = plant_all(arguments.kinds or list(FAULTS))
    for outcome in outcomes:
        print(f"{outcome.exit_code} {outcome.kind}: {outcome.fault} ({outcome.way}): {outcome.message}")
    if not arguments.kinds:
        kept(outcomes)
    missed = misses(outcomes)
    for miss in missed:
        print(f"NOT FOUND: {miss.kind}: {miss.fault} ({miss.way})", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
