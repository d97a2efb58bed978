"""Peak memory of one arm: a fresh process loads it, runs one cell once, and reads its own high-water mark.

A process that the kernel kills for memory takes only itself along, so the cell is then known to be too
large before it is tried in the process that holds both arms.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from bench.design.arms import Arm
from bench.design.grid import Cell, by_memory
from bench.design.prompts import make_prompts
from bench.measure.cell import run_once
from bench.measure.child import ROOT, command_of, load_session, one_line, parser_of, reason_of_end
from bench.report.results import Absent, PeakMemory
from compressor.core.errors import CompressExportError, ResourceError

MODULE = "bench.measure.peak_memory"
_STATUS_FILE = Path("/proc/self/status")
_HIGH_WATER_FIELD = "VmHWM:"


@dataclass(kw_only=True)
class MemoryProbe:
    """One arm's peak in the largest cell that runs, and the reasons of larger ones that do not."""

    peak: PeakMemory | Absent
    failures: dict[Cell, str] = field(default_factory=dict)


def probe_memory(arm: Arm, *, cells: tuple[Cell, ...], seed: int) -> MemoryProbe:
    """Run the largest cell in a child process; while one fails, the next smaller."""
    probe = MemoryProbe(peak=Absent(absent="no cell of the grid ran"))
    for cell in by_memory(cells):
        try:
            probe.peak = run_alone(arm, cell=cell, seed=seed)
        except ResourceError as error:
            probe.failures[cell] = str(error.found)
        else:
            break
    return probe


def run_alone(arm: Arm, *, cell: Cell, seed: int, memory_limit: int | None = None) -> PeakMemory:
    """Run one cell in a process of its own, which may be kept from taking more than some memory.

    One that does not run is a ResourceError.
    """
    options = {"isl": cell.isl, "osl": cell.osl, "batch-size": cell.batch_size, "seed": seed}
    options |= {} if memory_limit is None else {"memory-limit": memory_limit}
    done = subprocess.run(  # noqa: S603 - this interpreter, no shell
        command_of(MODULE, arm, *(f"--{name}={value}" for name, value in options.items())),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reason = reason_of_end(done.returncode, done.stderr)
        raise ResourceError(
            "this benchmark cell (lengths and batch size) does not run, not even alone in a process",
            where=f"{arm.id}, cell {cell}",
            found=arm.without_path(f"{arm.id} alone in a process: {reason}"),
            hint="use a smaller --batch-size or --isl-osl, or a machine with more memory",
        )
    return PeakMemory.model_validate_json(done.stdout.splitlines()[-1])


def peak_resident_bytes() -> int:
    """The high-water mark of this process's resident set.

    Linux hands `ru_maxrss` down through exec, so a child of a large parent begins with the parent's
    peak; `VmHWM` belongs to the address space and starts anew.
    """
    if _STATUS_FILE.is_file():
        for line in _STATUS_FILE.read_text(encoding="ascii").splitlines():
            if line.startswith(_HIGH_WATER_FIELD):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(arguments: list[str] | None = None) -> None:
    """Entry of the child process: prints one line of JSON."""
    parser = parser_of(MODULE)
    parser.add_argument("--memory-limit", type=int, default=None)
    for name in ("--isl", "--osl", "--batch-size", "--seed"):
        parser.add_argument(name, type=int, required=True)
    options = parser.parse_args(arguments)
    cell = Cell(options.isl, options.osl, options.batch_size)
    if options.memory_limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (options.memory_limit, options.memory_limit))
    baseline_bytes = peak_resident_bytes()
    try:
        session = load_session(options)
        run_once(session, make_prompts((session.vocabulary,), cell=cell, seed=options.seed), cell=cell)
    except CompressExportError as error:
        raise SystemExit(one_line(error)) from error
    measured = PeakMemory(
        isl=cell.isl,
        osl=cell.osl,
        batch_size=cell.batch_size,
        peak_bytes=peak_resident_bytes(),
        baseline_bytes=baseline_bytes,
        device_bytes=_device_bytes(),
    )
    sys.stdout.write(measured.model_dump_json() + "\n")


def _device_bytes() -> int | None:
    """What torch reserved at most on the GPU of this process."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return int(torch.cuda.max_memory_reserved())


if __name__ == "__main__":
    main()
