"""What the machine is: device, dtype, memory, disk; and published rates of GPUs for estimates."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from compressor.core.errors import ResourceError, UsageError
from compressor.core.records import Record


@dataclass(frozen=True)
class Gpu:
    """Datasheet figures of one GPU.

    Attributes:
        driver_names: Parts of the driver's name for it, any of which tells it from the others.
        bf16_flops_per_s: Dense matrix rate.
        memory_bytes_per_s: Rate of the memory.
        assumed_hour_price: US dollars; an assumption, of the order of what clouds ask on demand.
        multiplies_fp8: Whether its matrix rate in FP8 is twice that in bf16; without, it has no FP8 products.
    """

    name: str
    driver_names: tuple[str, ...]
    bf16_flops_per_s: float
    memory_bytes: int
    assumed_hour_price: float
    memory_bytes_per_s: float
    multiplies_fp8: bool = True


# Rates are of NVIDIA's datasheets, whose rates "with sparsity" are twice the dense ones: "A100 Tensor Core
# GPU", "L40S", "H100 Tensor Core GPU" (SXM 1,979, NVL 1,671, in the edition of 2022 PCIe 1,513 TFLOPS),
# "H200 Tensor Core GPU" (SXM 1,979, NVL 1,671). Memory in GB/s: A100 80GB SXM 2,039, L40S 864, H100 SXM
# 3,350, PCIe 2,000, NVL 3,900, H200 4,800.
GPUS: dict[str, Gpu] = {
    # SXM and PCIe have the same rate.
    "a100": Gpu("NVIDIA A100 80GB", ("A100",), 312e12, 80 * 10**9, 2.0, 2.039e12, multiplies_fp8=False),
    "l40s": Gpu("NVIDIA L40S", ("L40S",), 362e12, 48 * 10**9, 1.0, 0.864e12),
    "h100": Gpu("NVIDIA H100 80GB SXM", ("H100 80GB HBM3", "H100 SXM"), 989e12, 80 * 10**9, 3.0, 3.35e12),
    "h100-pcie": Gpu("NVIDIA H100 80GB PCIe", ("H100 PCIe",), 756e12, 80 * 10**9, 2.5, 2.0e12),
    "h100-nvl": Gpu("NVIDIA H100 94GB NVL", ("H100 NVL",), 835e12, 94 * 10**9, 3.0, 3.9e12),
    "h200-nvl": Gpu("NVIDIA H200 NVL", ("H200 NVL",), 835e12, 141 * 10**9, 3.5, 4.8e12),
    "h200": Gpu("NVIDIA H200 SXM", ("NVIDIA H200",), 989e12, 141 * 10**9, 4.0, 4.8e12),
}

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def resolve_device(device: str) -> str:
    """`auto` becomes `cuda` where torch sees a GPU, else `cpu`; `cuda` where it sees none is a UsageError."""
    if device == "cpu":
        return device
    import torch

    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UsageError(
            "torch sees no GPU on this machine", where="--device", found="cuda", hint="use --device cpu"
        )
    return "cuda" if has_gpu else "cpu"


def driver_sees_gpu() -> bool:
    """Whether NVIDIA's management library (NVML) tells of a GPU; needs no torch."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
        return False
    try:
        return int(pynvml.nvmlDeviceGetCount()) > 0
    except pynvml.NVMLError:
        return False
    finally:
        pynvml.nvmlShutdown()


def torch_sees_gpu() -> bool:
    """Whether torch sees a GPU; torch is imported only where the driver does."""
    return driver_sees_gpu() and resolve_device("auto") == "cuda"


def resolve_dtype(dtype: str) -> str:
    """`auto` becomes `bfloat16`: the dtype of stored 16-bit weights and of forward passes."""
    return "bfloat16" if dtype == "auto" else dtype


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware; elsewhere autocast only costs time."""
    return not _BF16_FLAGS.isdisjoint(_cpuinfo().split())


def peak_bf16_flops_per_s() -> float | None:
    """The dense bf16 rate of this process's GPU from its datasheet; None without a GPU in the table."""
    import torch

    if not torch.cuda.is_available():
        return None
    gpu = gpu_called(torch.cuda.get_device_name())
    return gpu.bf16_flops_per_s if gpu else None


def gpu_called(driver_name: str) -> Gpu | None:
    """The table's row for the name that the driver gives a GPU; the first that fits, None where none does."""
    words = driver_name.lower()
    return next(
        (gpu for gpu in GPUS.values() if any(name.lower() in words for name in gpu.driver_names)), None
    )


def cpu_name() -> str:
    """The processor's name as the system states it."""
    for line in _cpuinfo().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpuinfo() -> str:
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8") if file.is_file() else ""


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
    """Refuse (ResourceError) what needs more bytes than all memory of a device, swap of a CPU included."""
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


class Machine(Record):
    """The machine, for records."""

    system: str
    cpu: str
    num_cpus: int | None
    memory_bytes: int


def describe() -> Machine:
    """This machine."""
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        cpu=cpu_name(),
        num_cpus=os.cpu_count(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )
