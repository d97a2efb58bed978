"""How fast this machine reads memory and multiplies matrices: measured once, then kept in a file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.results import Rates
from compressor.artifact import write_json
from compressor.hardware import cpu_name, resolve_device

RATES_FILE = "machine_rates.json"
NUM_REPETITIONS = 7
_CPU_BYTES, _CUDA_BYTES = 1 << 28, 1 << 32
_CPU_SIZE, _CUDA_SIZE = 1536, 8192
_E4M3 = "fp8"


def machine_rates(directory: Path) -> Rates:
    """The rates kept in `directory`, measured first where they are not there or of another machine."""
    file = directory / RATES_FILE
    if file.is_file():
        rates = Rates.model_validate_json(file.read_text(encoding="utf-8"))
        if rates.device == device_name():
            return rates
    rates = measure_rates()
    directory.mkdir(parents=True, exist_ok=True)
    write_json(file, rates.model_dump(mode="json"))
    return rates


def device_name() -> str:
    """The GPU where torch sees one, else the CPU with its threads."""
    import torch

    if resolve_device("auto") == "cuda":
        return str(torch.cuda.get_device_name())
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def measure_rates() -> Rates:
    """Best of several: a rate is what the machine can do, not what it does on a bad day."""
    import torch

    device = resolve_device("auto")
    ops = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        ops[name] = _matmul_rate(dtype, device)
    if device == "cuda" and torch.cuda.get_device_capability() >= (8, 9):
        ops[_E4M3] = _fp8_rate()
    return Rates(bandwidth_bytes_per_s=_bandwidth(device), matmul_ops_per_s=ops, device=device_name())


def _bandwidth(device: str) -> float:
    """Bytes read per second by a sum over an array far larger than any cache."""
    import torch

    num_bytes = _CUDA_BYTES if device == "cuda" else _CPU_BYTES
    array = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    return num_bytes / _best_s(array.sum, device)


def _matmul_rate(dtype: Any, device: str) -> float:
    import torch

    size = _CUDA_SIZE if device == "cuda" else _CPU_SIZE
    left = torch.ones((size, size), dtype=dtype, device=device)
    return 2 * size**3 / _best_s(lambda: left @ left, device)


def _fp8_rate() -> float:
    import torch

    left = torch.ones((_CUDA_SIZE, _CUDA_SIZE), device="cuda").to(torch.float8_e4m3fn)
    scale = torch.ones((), device="cuda")

    def multiply() -> Any:
        return torch._scaled_mm(  # noqa: SLF001 - the only door to these kernels
            left, left.t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16
        )

    return 2 * _CUDA_SIZE**3 / _best_s(multiply, "cuda")


def _best_s(run: Callable[[], object], device: str) -> float:
    import torch

    def once() -> float:
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    return min(once() for _ in range(NUM_REPETITIONS))
