"""The parts of `make gpu`, most important first."""

from __future__ import annotations

from tests.gpu.study.cells import Part
from tests.gpu.study.generation import runtime_cells
from tests.gpu.study.products import gemm_cells
from tests.gpu.study.stages import calibration_cells, distillation_cells, sparsegpt_cells

PARTS: dict[str, Part] = {
    "gemm": Part(
        what="matrix products of a layer, dense and 2:4, in bf16 and FP8: medians in microseconds by tokens",
        cells=gemm_cells,
    ),
    "runtime": Part(
        what="torch with CUDA graphs, random weights: output tokens per second over the published lengths",
        cells=runtime_cells,
    ),
    "distill": Part(
        what="one distillation step of eight layers: tokens per second, share of the peak, memory and plan",
        cells=distillation_cells,
    ),
    "sparsegpt": Part(
        what="SparseGPT to 2:4 of each matrix of an 8B layer: seconds, statistics given",
        cells=sparsegpt_cells,
    ),
    "calibration": Part(
        what="one decoder layer over calibration text with Gram matrices of its inputs: tokens per second",
        cells=calibration_cells,
    ),
}
