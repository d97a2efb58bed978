"""The least time a cell can take: each phase moves its bytes and does its operations, at best at once.

The rates of this machine are measured; those of a GPU elsewhere are its datasheet's. A decode step reads
every weight once and the keys and values of every sequence; prefill does the products of all prompt tokens.

Legend: B batch size, I isl, O osl.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.design.arms import Arm
from bench.design.comparisons import split_precision
from bench.design.grid import Cell
from bench.report.results import Absent, ArmCell, CellResult, Rates, Roofline
from compressor.core.hardware import Gpu
from compressor.models.dims import Dims, flops_per_token, kv_cache_bytes_per_token, weight_bytes

# What a precision multiplies in, and how wide its cached keys and values are.
_COMPUTE = {"int4": "fp32", "fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "fp8": "fp8"}
_CACHE_BYTES = {"int4": 4, "fp32": 4, "fp16": 2, "bf16": 2, "fp8": 2}
_SPARSE_SPEEDUP = 2  # 2:4 halves the operations of the linear layers at best


def compute_precision(precision: str) -> str | None:
    """What an arm of this precision multiplies in, such as `fp32` for `int4`; None where unknown."""
    return _COMPUTE.get(split_precision(precision)[0])


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one generation has to move and to compute, at the very least."""

    prefill_bytes: int
    prefill_ops: int
    step_bytes: float
    step_ops: float
    num_steps: int


def work_of(dims: Dims, precision: str, cell: Cell) -> Work:
    """Bytes and operations of one arm in one cell of equal batches.

    Embedding rows are few and left out of a step only where the LM head is a matrix of its own;
    activations are left out everywhere: this is a floor.
    """
    dense, sparsity = split_precision(precision)
    weights = weight_bytes(dims, dense, is_sparse=bool(sparsity))
    if not dims.tie_word_embeddings:
        weights -= dims.vocab_size * dims.hidden_size * (4 if dense == "fp32" else 2)
    per_token = kv_cache_bytes_per_token(dims, _CACHE_BYTES[dense])
    mean_context = cell.isl + (cell.osl - 1) / 2
    head_ops = 2 * dims.vocab_size * dims.hidden_size
    # A causal prompt attends to half of itself on average; the LM head is needed at its last token only.
    prompt_ops = cell.isl * (flops_per_token(dims, cell.isl // 2) - head_ops) + head_ops
    step_ops = flops_per_token(dims, int(mean_context))
    fewer = _SPARSE_SPEEDUP if sparsity else 1
    return Work(
        prefill_bytes=int(weights) + cell.batch_size * cell.isl * per_token,
        prefill_ops=cell.batch_size * prompt_ops // fewer,
        step_bytes=weights + cell.batch_size * mean_context * per_token,
        step_ops=cell.batch_size * step_ops / fewer,
        num_steps=cell.osl - 1,
    )


def floor_s(work: Work, rates: Rates, precision: str) -> float:
    """Seconds below which the machine, whose rate in this precision was measured, cannot do this work."""
    prefill, step = phase_floors_s(work, rates, precision)
    return prefill + work.num_steps * step


def phase_floors_s(work: Work, rates: Rates, precision: str) -> tuple[float, float]:
    """The same of its prompt, and of one of its decode steps."""
    ops_per_s = rates.matmul_ops_per_s[_COMPUTE[split_precision(precision)[0]]]
    prefill = max(work.prefill_bytes / rates.bandwidth_bytes_per_s, work.prefill_ops / ops_per_s)
    step = max(work.step_bytes / rates.bandwidth_bytes_per_s, work.step_ops / ops_per_s)
    return prefill, step


def rates_of_gpu(gpu: Gpu) -> Rates:
    """What a GPU can do by its datasheet, in the precisions of its tensor cores."""
    ops = dict.fromkeys(("bf16", "fp16"), gpu.bf16_flops_per_s)
    ops["fp8"] = gpu.bf16_flops_per_s * (2 if gpu.multiplies_fp8 else 1)
    return Rates(bandwidth_bytes_per_s=gpu.memory_bytes_per_s, matmul_ops_per_s=ops, device=gpu.name)


def roofline_of_cell(
    baseline: Arm, candidate: Arm, *, cell: Cell, result: CellResult, rates: Rates
) -> Roofline | Absent:
    """Both floors of a measured cell, the best possible speed-up and how much was reached; or why not."""
    assert result.speedup is not None
    floors = []
    for arm, own in ((baseline, cell.baseline), (candidate, cell.candidate)):
        if arm.dims is None:
            return Absent(absent=f"the shape of {arm.id} is not known")
        if compute_precision(arm.precision) not in rates.matmul_ops_per_s:
            return Absent(absent=f"this machine's matrix rate in {arm.precision} was not measured")
        floors.append(floor_s(work_of(arm.dims, arm.precision, own), rates, arm.precision))
    best = (floors[0] / cell.baseline.batch_size) / (floors[1] / cell.candidate.batch_size)
    return Roofline(
        baseline_floor_s=floors[0],
        candidate_floor_s=floors[1],
        best_speedup=best,
        reached=result.speedup.ratio / best,
        baseline_share=floors[0] / _latency_s(result.baseline),
        candidate_share=floors[1] / _latency_s(result.candidate),
    )


def _latency_s(measured: ArmCell | None) -> float:
    assert measured is not None
    latency = measured.metrics["latency_s"]
    assert not isinstance(latency, Absent), "every measured cell has a latency"
    return latency.median
