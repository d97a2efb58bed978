"""`make gpu`: what a CUDA GPU is asked, in parts of at most eight minutes, kept in docs/results/gpu-*.json.

    python -m tests.gpu.study [PART ...] [--out DIR] [--minutes N] [--again]

Parts run in the order of their importance. Each keeps what it has measured after every cell, so that another
call goes on where the last one stopped; a cell that cannot run keeps the reason instead. Nothing is installed
and no network is used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from tests.corruptions.report import RESULTS
from tests.gpu.study.cells import Setting, run_part
from tests.gpu.study.parts import PARTS

MINUTES = 8.0
NO_GPU = 4


def main(words: list[str] | None = None) -> int:
    """Run what was asked for; exit code 4 without a CUDA GPU."""
    parser = argparse.ArgumentParser(description="Measurements on a CUDA GPU.")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all, most important first")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of each part")
    parser.add_argument("--again", action="store_true", help="measure anew what has been measured")
    arguments = parser.parse_args(words)
    if not torch.cuda.is_available():
        print("no CUDA GPU here: nothing measured", file=sys.stderr)
        return NO_GPU
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.parts or PARTS:
        setting = Setting(device="cuda", out=arguments.out, seconds=60 * arguments.minutes)
        left = run_part(name, PARTS[name], setting, again=arguments.again)
        print(f"{name}: {'done' if not left else f'{left} cells left: run it again'}", file=sys.stderr)
    if arguments.out == RESULTS:
        from tests.performance.tables import write_tables

        write_tables()
    return 0


if __name__ == "__main__":
    sys.exit(main())
