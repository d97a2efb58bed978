"""What the machine is: device, dtype, memory, disk; and published rates of GPUs for estimates."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from compressor.core.errors import ResourceError, UsageError


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Datasheet figures of one GPU: dense matrix rate in bf16, and memory; and a price.

    Attributes:
        name: What reports call it.
        words: What a device's name must hold to be this one; of several, the one with the most words.
        bf16_flops_per_s: Dense rate of its tensor cores; a rate "with sparsity" is twice that.
        memory_bytes: Decimal, as datasheets state it.
        assumed_hour_price: An assumption in US dollars, of the order of what clouds ask on demand.
    """

    name: str
    words: tuple[str, ...]
    bf16_flops_per_s: float
    memory_bytes: int
    assumed_hour_price: float


_GB = 10**9
# Rates are of NVIDIA's datasheets: "NVIDIA A100 Tensor Core GPU" (the same for SXM and PCIe), "NVIDIA L40S",
# "NVIDIA H100 Tensor Core GPU" (SXM 1,979 and NVL 1,671 TFLOPS with sparsity; the edition of 2022 has PCIe
# with 1,513), and "NVIDIA H200 Tensor Core GPU" (SXM 1,979, NVL 1,671 with sparsity).
GPUS: dict[str, Gpu] = {
    "a100": Gpu(
        name="NVIDIA A100 80GB SXM",
        words=("a100",),
        bf16_flops_per_s=312e12,
        memory_bytes=80 * _GB,
        assumed_hour_price=2.0,
    ),
    "l40s": Gpu(
        name="NVIDIA L40S",
        words=("l40s",),
        bf16_flops_per_s=362e12,
        memory_bytes=48 * _GB,
        assumed_hour_price=1.0,
    ),
    "h100": Gpu(
        name="NVIDIA H100 80GB SXM",
        words=("h100",),
        bf16_flops_per_s=989e12,
        memory_bytes=80 * _GB,
        assumed_hour_price=3.0,
    ),
    "h100-pcie": Gpu(
        name="NVIDIA H100 80GB PCIe",
        words=("h100", "pcie"),
        bf16_flops_per_s=756e12,
        memory_bytes=80 * _GB,
        assumed_hour_price=2.5,
    ),
    "h100-nvl": Gpu(
        name="NVIDIA H100 NVL",
        words=("h100", "nvl"),
        bf16_flops_per_s=835e12,
        memory_bytes=94 * _GB,
        assumed_hour_price=2.5,
    ),
    "h200": Gpu(
        name="NVIDIA H200 SXM",
        words=("h200",),
        bf16_flops_per_s=989e12,
        memory_bytes=141 * _GB,
        assumed_hour_price=4.0,
    ),
    "h200-nvl": Gpu(
        name="NVIDIA H200 NVL",
        words=("h200", "nvl"),
        bf16_flops_per_s=835e12,
        memory_bytes=141 * _GB,
        assumed_hour_price=3.5,
    ),
}

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def resolve_device(device: str) -> str:
    """`auto` becomes `cuda` where torch sees a GPU, else `cpu`.

    Raises:
        UsageError: for `cuda` where torch sees none.
    """
    if device == "cpu":
        return device
    import torch

    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UsageError(
            "torch sees no GPU on this machine", where="--device", found="cuda", hint="--device cpu"
        )
    return "cuda" if has_gpu else "cpu"


def resolve_dtype(dtype: str) -> str:
    """`auto` becomes `bfloat16`: the dtype of stored 16-bit weights and of forward passes."""
    return "bfloat16" if dtype == "auto" else dtype


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware; elsewhere autocast only costs time."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.is_file() else []
    return not _BF16_FLAGS.isdisjoint(flags)


def peak_bf16_flops_per_s() -> float | None:
    """The dense bf16 rate of this process's GPU from its datasheet; None without a GPU in the table."""
    import torch

    if not torch.cuda.is_available():
        return None
    gpu = gpu_named(torch.cuda.get_device_name())
    return gpu.bf16_flops_per_s if gpu else None


def gpu_named(device_name: str) -> Gpu | None:
    """The table's row for a device, such as `NVIDIA H100 PCIe`; None where it has none."""
    name = device_name.lower()
    matching = [gpu for gpu in GPUS.values() if all(word in name for word in gpu.words)]
    return max(matching, key=lambda gpu: len(gpu.words), default=None)


def cpu_name() -> str:
    """The processor's name as the system states it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int:
    """Physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_memory_bytes() -> int:
    """Physical memory and swap, or what the control group of this process may use if that is less."""
    import psutil

    total = int(psutil.virtual_memory().total + psutil.swap_memory().total)
    return min([total, *_cgroup_limits()])


def available_memory_bytes() -> int:
    """What can be allocated now without swapping, within the control group's limit."""
    import psutil

    return min([int(psutil.virtual_memory().available), *_cgroup_limits()])


def require_memory(needed: int, *, device: str, what: str, hint: str) -> None:
    """Refuse what needs more than all memory of a device, swap of a CPU included.

    Args:
        needed: Bytes that are certainly needed.
        device: Torch device name.
        what: What does not fit; begins the error's message.
        hint: What to do.

    Raises:
        ResourceError: naming what is needed and what there is.
    """
    if device == "cuda":
        import torch

        total = int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    else:
        total = usable_memory_bytes()
    if needed > total:
        raise ResourceError(
            what,
            where=device,
            expected=f"at least {needed:,} bytes",
            found=f"{total:,} bytes in all",
            hint=hint,
        )


def _cgroup_limits() -> list[int]:
    """Limits of the control group that this process sees as its root, as containers set them."""
    files = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    texts = [file.read_text(encoding="ascii").strip() for file in files if file.is_file()]
    return [int(text) for text in texts if text.isdigit()]


def free_disk_bytes(path: Path) -> int:
    """Free space where `path` is, or would be."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def describe() -> dict[str, object]:
    """The machine, for manifests."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": cpu_name(),
        "num_cpus": os.cpu_count(),
        "memory_bytes": memory_bytes(),
    }
