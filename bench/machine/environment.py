"""What a benchmark's numbers depend on besides the models. Names only: no path of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from bench.design.arms import Arm
from bench.report.results import Environment, FileRecord, Gpu, Snapshot
from compressor.runs.artifact import sha256_of_file
from compressor.runs.manifest import versions

CONTAINER_DIGEST_VARIABLE = "COMPRESS_EXPORT_CONTAINER_DIGEST"
_CPU_INFO = Path("/proc/cpuinfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
# The second is what older drivers call it; one unknown field and nvidia-smi tells nothing.
_THROTTLE_FIELDS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
# nvidia-smi's names, in the order of `_gpu`.
_GPU_FIELDS = (
    "name",
    "driver_version",
    "memory.total",
    "clocks.sm",
    "clocks.mem",
    "power.limit",
    "temperature.gpu",
    "clocks_event_reasons.active",
    "ecc.mode.current",
    "mig.mode.current",
    "uuid",
)
_FORMS = ("SXM", "PCIe", "NVL")
# Data-centre boards of these names that carry no suffix are SXM modules.
_MODULE_MEMORY = "HBM3"
_COMMAND_TIMEOUT_S = 20


def take_snapshot() -> Snapshot:
    """Load and clocks now."""
    return Snapshot(load_average=os.getloadavg(), cpu_clock_mhz=_cpu_clock_mhz(), gpus=_gpus())


def describe_environment(*, before: Snapshot, after: Snapshot) -> Environment:
    """The machine and the software, with the snapshots taken around the measurements."""
    return Environment(
        cpu=_cpu_fields("model name")[0] if _cpu_fields("model name") else platform.machine(),
        num_logical_cores=os.cpu_count() or 1,
        num_usable_cores=_num_usable_cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu_governor=_GOVERNOR.read_text(encoding="ascii").strip() if _GOVERNOR.is_file() else None,
        container_digest=os.environ.get(CONTAINER_DIGEST_VARIABLE),
        git_commit=_git_commit(),
        versions=versions(),
        before=before,
        after=after,
    )


def model_files(arm: Arm) -> dict[str, FileRecord]:
    """Digest and size of every file in an arm's directory, by name within it."""
    return {
        path.relative_to(arm.weights).as_posix(): FileRecord(
            sha256=sha256_of_file(path), size_bytes=path.stat().st_size
        )
        for path in sorted(arm.weights.rglob("*"))
        if path.is_file()
    }


def _cpu_fields(name: str) -> list[str]:
    """Values of one field of /proc/cpuinfo, one per core; empty where there is no such file."""
    if not _CPU_INFO.is_file():
        return []
    lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name]


def _cpu_clock_mhz() -> float | None:
    clocks = [float(value) for value in _cpu_fields("cpu MHz")]
    return sum(clocks) / len(clocks) if clocks else None


def _num_usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus() -> tuple[Gpu, ...]:
    output = None
    for reasons in _THROTTLE_FIELDS:
        fields = ",".join(reasons if name == _THROTTLE_FIELDS[0] else name for name in _GPU_FIELDS)
        output = output or _output_of("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    if output is None:
        return ()
    users = _output_of("nvidia-smi", "--query-compute-apps=gpu_uuid,pid", "--format=csv,noheader,nounits")
    return tuple(_gpu(line, users or "") for line in output.splitlines())


def _gpu(line: str, users: str) -> Gpu:
    """One line of `nvidia-smi`, with the lines that name processes on GPUs."""
    value = dict(zip(_GPU_FIELDS, (part.strip() for part in line.split(",")), strict=True))
    pids = [user.partition(",")[2].strip() for user in users.splitlines() if user.startswith(value["uuid"])]
    return Gpu(
        name=value["name"],
        driver=value["driver_version"],
        memory_mib=value["memory.total"],
        sm_clock_mhz=value["clocks.sm"],
        memory_clock_mhz=value["clocks.mem"],
        power_limit_w=value["power.limit"],
        form=gpu_form(value["name"]),
        temperature_c=value["temperature.gpu"],
        throttle_reasons=value["clocks_event_reasons.active"],
        ecc=value["ecc.mode.current"],
        mig=value["mig.mode.current"],
        num_other_processes=sum(pid != str(os.getpid()) for pid in pids),
    )


def gpu_form(name: str) -> str | None:
    """How a board is built, as far as its name tells: `NVIDIA H100 PCIe`, `NVIDIA H100 80GB HBM3`."""
    for form in _FORMS:
        if form.lower() in name.lower():
            return form
    return "SXM" if _MODULE_MEMORY in name else None


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
