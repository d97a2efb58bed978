"""`make faults`: strike every command at every point, keep what happened in docs/results/faults.json.

`python -m tests.faults SCENARIO...` does so in some scenarios, with `--fault` only some faults, and with
`--sample` a spread part; such a part is only printed, unless `--keep` is given.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from tests.faults.network import Hub
from tests.faults.scenarios import Inputs
from tests.faults.strikes import READ_ONLY
from tests.faults.suite import FULL, SAMPLE, SAMPLED, Setting, run_suite
from tests.faults.watch import UnsupportedError

UNSUPPORTED = 3
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_OFFLINE": "1"}


def main() -> int:
    """Plant what was asked for; 1 when something did not behave, 3 where system calls cannot be held."""
    parser = argparse.ArgumentParser(description="Faults of the machine, at every point of every command.")
    parser.add_argument("scenarios", nargs="*", help="names, or beginnings of them; default: all")
    parser.add_argument("--fault", action="append", choices=list(FULL), help="only these faults")
    parser.add_argument("--sample", action="store_true", help="a spread part, of about a minute and a half")
    parser.add_argument("--points", type=int, help="at most so many points of each fault")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="keep the result although it is a part")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        hub = Hub(root / "inputs" / "teacher", root / "requests")
        # Before any import of the hub's libraries, which read these once.
        os.environ |= {**_ENVIRONMENT, "HF_HOME": str(root / "hub"), "HF_ENDPOINT": hub.address}
        os.environ.pop("HF_HUB_OFFLINE", None)
        try:
            return _plant(arguments, root, hub)
        except UnsupportedError as error:
            print(error, file=sys.stderr)
            return UNSUPPORTED
        finally:
            hub.close()


def _plant(arguments: argparse.Namespace, root: Path, hub: Hub) -> int:
    import torch

    from tests.faults.report import kept

    started = time.monotonic()
    torch.set_num_threads(1)
    limit = arguments.points
    counts = {
        fault: count if limit is None else min(limit, count or limit)
        for fault, count in (SAMPLE if arguments.sample else FULL).items()
        if not arguments.fault or fault in arguments.fault
    }
    beginnings = tuple(arguments.scenarios) or ("",)

    def chosen(name: str) -> bool:
        return name.startswith(beginnings) and (name in SAMPLED or not arguments.sample)

    setting = Setting(inputs=Inputs(root / "inputs"), root=root, hub=hub, cache=root / "hub", counts=counts)
    outcomes = run_suite(setting, chosen, workers=arguments.workers, say=partial(print, flush=True))
    bad = [outcome for outcome in outcomes if not outcome.behaved]
    seconds = time.monotonic() - started
    print(f"{len(outcomes) - len(bad)} of {len(outcomes)} points behaved, in {seconds:.0f} s")
    is_part = arguments.sample or arguments.scenarios or arguments.fault or arguments.points
    if arguments.keep or not is_part:
        command = " ".join(["python -m tests.faults", *sys.argv[1:]]) if is_part else "make faults"
        whole = {fault: count is None or fault == READ_ONLY for fault, count in counts.items()}
        kept(outcomes, command=command, seconds=seconds, whole=whole)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
