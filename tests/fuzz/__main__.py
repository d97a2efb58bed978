"""`make fuzz`: hostile input of every kind, ten minutes each, kept in docs/results/fuzz.json.

`python -m tests.fuzz --seconds 60 config gguf` tries some kinds and keeps nothing.
"""

from __future__ import annotations

import os

# Before any import of the hub's libraries, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from tests.fuzz.campaign import Tally, hunt
from tests.fuzz.kinds import KINDS
from tests.fuzz.report import kept

TEN_MINUTES = 600.0


def main() -> int:
    """Try what was asked for; 1 when a fault was found."""
    parser = argparse.ArgumentParser(description="Hostile input of every kind.")
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], help="default: all")
    parser.add_argument("--seconds", type=float, default=TEN_MINUTES, help="for each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the first batch of examples")
    parser.add_argument("--faults", type=Path, help="a directory for the inputs that fail")
    parser.add_argument("--keep", action="store_true", help="keep the counts in docs/results/fuzz.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tallies: list[Tally] = []
    for name in arguments.kinds or KINDS:
        with tempfile.TemporaryDirectory() as scratch:  # a run names the teacher that lies there
            tally = hunt(
                KINDS[name],
                KINDS[name].seeds(Path(scratch)),
                seconds=arguments.seconds,
                seed=arguments.seed,
                keep=arguments.faults,
            )
        tallies.append(tally)
        _say(tally, arguments.faults)
        if arguments.keep:
            kept(tallies, seconds=arguments.seconds)
    return 1 if any(tally.faults for tally in tallies) else 0


def _say(tally: Tally, faults: Path | None) -> None:
    codes = ", ".join(f"{code}: {count}" for code, count in sorted(tally.exit_codes.items()))
    print(f"{tally.kind}: {tally.examples} examples in {tally.seconds:.0f} s; exit codes {codes}", flush=True)
    for number, fault in enumerate(tally.faults):
        print(f"FAULT {tally.kind}: {fault['signature']}\n    {fault['what']}", flush=True)
        if faults is not None:
            faults.mkdir(parents=True, exist_ok=True)
            file = faults / f"{tally.kind}-{number}.json"
            file.write_text(json.dumps(fault, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
