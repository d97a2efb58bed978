"""What a benchmark's numbers depend on besides the models. Names only: no path of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from bench.machine.gpus import describe_gpus
from bench.report.results import Environment, Snapshot
from compressor.core.console import Console
from compressor.runs.manifest import versions

CONTAINER_DIGEST_VARIABLE = "COMPRESS_EXPORT_CONTAINER_DIGEST"
_CPU_INFO = Path("/proc/cpuinfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_COMMAND_TIMEOUT_S = 20


def take_snapshot() -> Snapshot:
    """Load and clocks now."""
    return Snapshot(load_average=os.getloadavg(), cpu_clock_mhz=_cpu_clock_mhz(), gpus=describe_gpus())


def warn_of_sharing(snapshot: Snapshot, console: Console) -> None:
    """Say of every GPU that other processes run on it: they take memory, and time from what is measured."""
    for index, gpu in enumerate(snapshot.gpus):
        if gpu.num_other_processes:
            console.warn(
                f"bench: GPU {index} ({gpu.name}) runs {gpu.num_other_processes} other processes: they take "
                "memory, and time from what is measured"
            )


def describe_environment(*, before: Snapshot, after: Snapshot) -> Environment:
    """The machine and the software, with the snapshots taken around the measurements."""
    return Environment(
        cpu=next(iter(_cpu_fields("model name")), platform.machine()),
        num_logical_cores=os.cpu_count() or 1,
        num_usable_cores=num_usable_cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu_governor=_GOVERNOR.read_text(encoding="ascii").strip() if _GOVERNOR.is_file() else None,
        container_digest=os.environ.get(CONTAINER_DIGEST_VARIABLE),
        git_commit=_git_commit(),
        versions=versions(),
        before=before,
        after=after,
    )


def _cpu_fields(name: str) -> list[str]:
    """Values of one field of /proc/cpuinfo, one per core; empty where there is no such file."""
    if not _CPU_INFO.is_file():
        return []
    lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name]


def _cpu_clock_mhz() -> float | None:
    clocks = [float(value) for value in _cpu_fields("cpu MHz")]
    return sum(clocks) / len(clocks) if clocks else None


def num_usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _git_commit() -> str | None:
    """The checkout this code runs from, `-dirty` if changed; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    commit = _output_of("git", "-C", str(root), "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _output_of("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changes else commit


def _output_of(*command: str) -> str | None:
    """What a command prints, or None where it is absent or fails."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed commands, no shell
            command, capture_output=True, text=True, check=True, timeout=_COMMAND_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
