"""The published speed study on a CUDA GPU, with random weights: `python -m tests.gpu.bench_study OUT`.

Teacher, 4b-width and 4b-depth in 16 bits and in FP8, at equal and at each model's largest batch, and how
fast single layers of these shapes multiply dense, in FP8 and in 2:4. Published beside it: requests per
second in FP8 rose 1.8x (width) and 2.7x (depth) over the 8B model with twice its batch, and 1.3x from 16
bits to FP8 (Llama-3.1-Minitron, arXiv 2408.11796 and its announcement).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.runtimes.torch_linear import SPARSITY, Fp8Linear, require_support, thin_to_2_of_4
from compressor.artifact import write_json
from compressor.errors import UnsupportedError
from compressor.models.dims import Dims
from compressor.presets import PRESETS

MODELS = ("llama3.1-8b", "llama3.1-8b:4b-width", "llama3.1-8b:4b-depth")
BENCH = (
    *("bench", "--random-weights", *MODELS, "--runtime", "torch-eager", "--precision", "bf16,fp8"),
    *("--isl-osl", "128/128,1000/1000,2048/128", "--batch-size", "32,64,32:64,max"),
    *("--processes", "alternating"),
)
TOKENS = (1, 16, 64, 256, 1024, 4096)
NUM_REPETITIONS = 50
_PROGRAM = "import sys; from compressor.cli.main import invoke; sys.exit(invoke(sys.argv[1:]))"


def layer_shapes(dims: Dims) -> dict[str, tuple[int, int]]:
    """Output and input width of a decoder layer's matrices, as an engine fuses them."""
    heads = dims.num_attention_heads * dims.head_dim
    keys = dims.num_key_value_heads * dims.head_dim
    return {
        "qkv": (heads + 2 * keys, dims.hidden_size),
        "o": (dims.hidden_size, heads),
        "gate_up": (2 * dims.intermediate_size, dims.hidden_size),
        "down": (dims.hidden_size, dims.intermediate_size),
    }


def gemm_study() -> list[dict[str, Any]]:
    """Seconds of every layer shape at every number of tokens, dense, FP8 and 2:4; absent where refused."""
    return [
        {
            "model": model, "layer": layer, "shape": list(shape), "tokens": tokens,
            "seconds": {precision: gemm_s(shape, tokens, precision) for precision in precisions()},
        }
        for model in ("llama3.1-8b", "4b-width")
        for layer, shape in layer_shapes(PRESETS[model].dims).items()
        for tokens in TOKENS
    ]  # fmt: skip


def precisions() -> Iterator[str]:
    """What this GPU has kernels for."""
    for precision in ("bf16", "fp8", f"bf16+{SPARSITY}"):
        try:
            require_support(precision, "cuda")
        except UnsupportedError:
            continue
        yield precision


@torch.inference_mode()
def gemm_s(shape: tuple[int, int], tokens: int, precision: str) -> float:
    """Median seconds of one product, from CUDA events."""
    linear: Any = nn.Linear(shape[1], shape[0], bias=False, device="cuda", dtype=torch.bfloat16)
    states = torch.randn(tokens, shape[1], device="cuda", dtype=torch.bfloat16)
    if precision == "fp8":
        linear = Fp8Linear(linear)
    elif precision.endswith(SPARSITY):
        linear.weight = nn.Parameter(
            torch.sparse.to_sparse_semi_structured(thin_to_2_of_4(linear.weight.detach())),
            requires_grad=False,
        )
    return median_event_s(lambda: linear(states))


def median_event_s(run: Callable[[], object]) -> float:
    """Warm, then time each call by events on the device."""
    for _ in range(5):
        run()
    times = []
    for _ in range(NUM_REPETITIONS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return sorted(times)[len(times) // 2]


def main() -> None:
    """Run both parts into one directory."""
    parser = argparse.ArgumentParser(description="The published speed study on a CUDA GPU.")
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: this study was not measured")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "gemm.json", {"gpu": torch.cuda.get_device_name(), "gemms": gemm_study()})
    subprocess.run([sys.executable, "-c", _PROGRAM, *BENCH, "-o", str(out / "bench")], check=True)


if __name__ == "__main__":
    main()
