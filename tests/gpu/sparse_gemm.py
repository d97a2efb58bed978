"""Does 2:4 pay on this GPU? Every GEMM shape of a model, dense and 2:4, in 16 bits and FP8.

    python -m tests.gpu.sparse_gemm [ALIAS[:SHAPE] ...] [--output FILE.json]

Sparse products go through torch's semi-structured tensors on cuSPARSELt. Each time is the median of
repeated CUDA-event timings, dense and sparse taking turns. The report ends with the smallest number of
tokens per step from which 2:4 is faster at every larger one measured, per shape.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from compressor.core.hardware import describe
from compressor.models.dims import Dims
from compressor.models.presets import PRESETS
from compressor.models.sparse.masks import keep_mask

SCHEMA = "compress-export/sparse-gemm/1"
TOKENS = tuple(2**power for power in range(14))  # 1 to 8192
NUM_WARMUP, NUM_ROUNDS, NUM_REPEATS = 3, 11, 10
MODELS = ("llama3.1-8b", "4b-width")
FP8_MIN_CAPABILITY = (8, 9)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One product `[tokens, in] x [in, out]`: medians in microseconds, or a reason why one is missing."""

    precision: str
    out_features: int
    in_features: int
    tokens: int
    dense_us: float | None = None
    sparse_us: float | None = None
    reason: str | None = None

    @property
    def speedup(self) -> float | None:
        return self.dense_us / self.sparse_us if self.dense_us and self.sparse_us else None


def gemm_shapes(dims: Dims) -> dict[str, tuple[int, int]]:
    """`(out, in)` of a layer's products as runtimes join them: q, k and v in one, gate and up in one."""
    attention = dims.num_attention_heads * dims.head_dim
    keys = dims.num_key_value_heads * dims.head_dim
    inputs = 2 if dims.family.gated_mlp else 1
    return {
        "qkv": (attention + 2 * keys, dims.hidden_size),
        "o": (dims.hidden_size, attention),
        "mlp_in": (inputs * dims.intermediate_size, dims.hidden_size),
        "down": (dims.hidden_size, dims.intermediate_size),
    }


def crossover(cells: list[Cell]) -> int | None:
    """The smallest tokens per step from which 2:4 is faster at this and every larger one; None if none."""
    found = None
    for cell in sorted(cells, key=lambda entry: entry.tokens, reverse=True):
        if cell.speedup is None or cell.speedup <= 1:
            break
        found = cell.tokens
    return found


def measure(precision: str, shape: tuple[int, int], tokens: int, *, device: str = "cuda") -> Cell:
    """Time one product; what cannot run says why."""
    facts = {"precision": precision, "out_features": shape[0], "in_features": shape[1], "tokens": tokens}
    try:
        dense, sparse = _PRODUCTS[precision](shape, tokens, device)
        dense_us, sparse_us = _times(dense, sparse, device)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return Cell(**facts, reason=str(error).splitlines()[0])
    return Cell(**facts, dense_us=dense_us, sparse_us=sparse_us)


Product = Callable[[], torch.Tensor]


def _bf16(shape: tuple[int, int], tokens: int, device: str) -> tuple[Product, Product]:
    from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

    SparseSemiStructuredTensor._FORCE_CUTLASS = False
    weight = _masked_weight(shape, device).bfloat16()
    packed = to_sparse_semi_structured(weight)
    inputs = torch.randn(tokens, shape[1], device=device, dtype=torch.bfloat16)
    linear = torch.nn.functional.linear
    _check_close(linear(inputs, packed), linear(inputs, weight))
    return (lambda: linear(inputs, weight)), (lambda: linear(inputs, packed))


def _fp8(shape: tuple[int, int], tokens: int, device: str) -> tuple[Product, Product]:
    """Per-tensor scales of one: times do not depend on them. Sparse through cuSPARSELt itself."""
    weight = _masked_weight(shape, device).to(torch.float8_e4m3fn)
    inputs = torch.randn(max(tokens, 16), shape[1], device=device).to(torch.float8_e4m3fn)
    one = torch.ones((), device=device)
    compressed = torch._cslt_compress(weight)

    def dense() -> torch.Tensor:
        return torch._scaled_mm(
            inputs, weight.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        )

    def sparse() -> torch.Tensor:
        return torch._cslt_sparse_mm(compressed, inputs.T, out_dtype=torch.bfloat16)

    _check_close(sparse().T, dense())
    return dense, sparse


_PRODUCTS = {"bf16": _bf16, "fp8": _fp8}


def _masked_weight(shape: tuple[int, int], device: str) -> torch.Tensor:
    weight = torch.randn(*shape, device=device) / shape[1] ** 0.5
    return weight.masked_fill(~keep_mask(weight.abs()), 0)


def _check_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    difference = (found.float() - expected.float()).abs().max() / expected.float().abs().max()
    if not difference < 0.05:
        raise ValueError(f"the sparse product is wrong by {difference:.3g} of the largest value")


def _times(dense: Product, sparse: Product, device: str) -> tuple[float, float]:
    """Medians in microseconds, by the device's own clock where it has one."""
    for _ in range(NUM_WARMUP):
        dense()
        sparse()
    times: dict[str, list[float]] = {"dense": [], "sparse": []}
    for _ in range(NUM_ROUNDS):
        for name, product in (("dense", dense), ("sparse", sparse)):
            times[name].append(_repeated_us(product, device) / NUM_REPEATS)
    return statistics.median(times["dense"]), statistics.median(times["sparse"])


def _repeated_us(product: Product, device: str) -> float:
    if device == "cpu":
        started = time.perf_counter()
        for _ in range(NUM_REPEATS):
            product()
        return (time.perf_counter() - started) * 1e6
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(NUM_REPEATS):
        product()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) * 1000


def study(models: list[str]) -> dict[str, Any]:
    shapes = {
        f"{model} {name}": shape
        for model in models
        for name, shape in gemm_shapes(PRESETS[model].dims).items()
    }
    precisions = ["bf16"]
    if torch.cuda.get_device_capability() >= FP8_MIN_CAPABILITY:
        precisions.append("fp8")
    products = []
    for name, shape in shapes.items():
        for precision in precisions:
            cells = [measure(precision, shape, tokens) for tokens in TOKENS]
            print(f"{name} {shape} {precision}: 2:4 pays from {crossover(cells)} tokens", file=sys.stderr)
            measured = [{**asdict(cell), "speedup": cell.speedup} for cell in cells]
            product = {"name": name, "precision": precision, "pays_from_tokens": crossover(cells)}
            products.append({**product, "cells": measured})
    return {
        "schema": SCHEMA,
        "gpu": torch.cuda.get_device_name(),
        "hardware": describe().to_json(),
        "torch": torch.__version__,
        "products": products,
    }


def main() -> int:
    """Run the study; exit code 4 without a GPU that has sparse tensor cores."""
    parser = argparse.ArgumentParser(description="Dense against 2:4 matrix products on this GPU.")
    parser.add_argument("models", nargs="*", default=list(MODELS), choices=[*PRESETS, list(MODELS)])
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        print("no GPU with sparse tensor cores here: nothing measured", file=sys.stderr)
        return 4
    text = json.dumps(study(list(arguments.models)), indent=2)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
