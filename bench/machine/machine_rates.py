"""How fast this machine reads memory and multiplies matrices: measured once, then kept in a file."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from bench.report.results import Rates
from compressor.core.errors import VerificationError
from compressor.core.hardware import cpu_name
from compressor.core.json_files import read_json_mapping
from compressor.runs.artifact import write_json

if TYPE_CHECKING:
    import torch

_AGAIN = "delete the file: the rates are then measured again"
RATES_FILE = "machine_rates.json"
NUM_REPETITIONS = 7
_CPU_BYTES, _CUDA_BYTES = 1 << 28, 1 << 32
# Larger products are more efficient, but a CPU without kernels for a dtype takes minutes over them.
_CPU_SIZES, _CUDA_SIZES = (384, 768, 1536), (8192,)
_SLOW_S = 0.25
_E4M3, _FP8_CAPABILITY = "fp8", (8, 9)


def machine_rates(directory: Path, *, device: str, precisions: Iterable[str]) -> Rates:
    """The rates of `device` kept in `directory`; what is not there, or of another machine, is measured first.

    `precisions` are those whose matrix rate is wanted: `fp32`, `bf16`, `fp16`, `fp8`.
    """
    file = directory / RATES_FILE
    known = _kept(file) if file.is_file() else None
    if known is not None and known.device != device_name(device):
        known = None
    wanted = sorted(set(precisions) - (known.matmul_ops_per_s.keys() if known else set()))
    if known is not None and not wanted:
        return known
    rates = measure_rates(wanted, known, device=device)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(file, rates.model_dump(mode="json"))
    return rates


def _kept(file: Path) -> Rates:
    """The rates in a file of ours; a VerificationError when they are none."""
    record = read_json_mapping(file, what="the machine's rates")
    try:
        known = Rates.model_validate(record)
    except ValidationError as error:
        raise VerificationError(
            "the file of this machine's rates cannot be read",
            where=str(file),
            found=error.errors()[0]["msg"],
            hint=_AGAIN,
        ) from error
    wrong = [rate for rate in (known.bandwidth_bytes_per_s, *known.matmul_ops_per_s.values()) if not rate > 0]
    if wrong:
        raise VerificationError(
            "a stored rate of this machine is not positive", where=str(file), found=wrong[0], hint=_AGAIN
        )
    return known


def device_name(device: str) -> str:
    """The GPU, or the CPU with its threads."""
    import torch

    if device == "cuda":
        return str(torch.cuda.get_device_name())
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def measure_rates(precisions: Iterable[str], known: Rates | None = None, *, device: str) -> Rates:
    """Measure each rate several times and take the best: a roofline needs what the machine can do.

    A precision that this machine has no kernels for is left out. Rates in `known` are kept.
    """
    import torch

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    ops = dict(known.matmul_ops_per_s) if known else {}
    for name in precisions:
        if name in dtypes:
            ops[name] = _matmul_rate(dtypes[name], device)
        elif name == _E4M3 and device == "cuda" and torch.cuda.get_device_capability() >= _FP8_CAPABILITY:
            ops[name] = _fp8_rate()
    bandwidth = known.bandwidth_bytes_per_s if known else _bandwidth(device)
    if device == "cuda":
        torch.cuda.empty_cache()  # leaves the memory to the models
    return Rates(bandwidth_bytes_per_s=bandwidth, matmul_ops_per_s=ops, device=device_name(device))


def _bandwidth(device: str) -> float:
    """Bytes read per second by a sum over an array far larger than any cache."""
    import torch

    num_bytes = _CUDA_BYTES if device == "cuda" else _CPU_BYTES
    array = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    return num_bytes / _best_s(array.sum, device)


def _matmul_rate(dtype: torch.dtype, device: str) -> float:
    """Operations per second of the best size; sizes beyond a slow one are not tried."""
    import torch

    best = 0.0
    for size in _CUDA_SIZES if device == "cuda" else _CPU_SIZES:
        left = torch.ones((size, size), dtype=dtype, device=device)
        seconds = _best_s(partial(operator.matmul, left, left), device)
        best = max(best, 2 * size**3 / seconds)
        if seconds > _SLOW_S:
            break
    return best


def _fp8_rate() -> float:
    import torch

    size = _CUDA_SIZES[-1]
    left = torch.ones((size, size), device="cuda").to(torch.float8_e4m3fn)
    scale = torch.ones((), device="cuda")

    def multiply() -> torch.Tensor:
        return torch._scaled_mm(  # noqa: SLF001 - torch has no public function for these kernels
            left, left.t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16
        )

    return 2 * size**3 / _best_s(multiply, "cuda")


def _best_s(run: Callable[[], object], device: str) -> float:
    import torch

    def once() -> float:
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    first = once()
    if first > _SLOW_S:
        return first
    return min(once() for _ in range(NUM_REPETITIONS))
