"""The GPU study's arithmetic, which needs no GPU."""

from __future__ import annotations

from compressor.models.presets import PRESETS
from tests.gpu.sparse_gemm import Cell, crossover, gemm_shapes


def cell(tokens: int, dense: float | None, sparse: float | None) -> Cell:
    return Cell(
        precision="bf16", out_features=8, in_features=8, tokens=tokens, dense_us=dense, sparse_us=sparse
    )


def test_crossover_is_the_start_of_the_last_unbroken_gain() -> None:
    times = [(1, 2.0, 1.0), (2, 1.0, 2.0), (4, 3.0, 2.0), (8, 3.0, 1.0)]
    assert crossover([cell(*entry) for entry in times]) == 4
    assert crossover([cell(*entry) for entry in times[:2]]) is None
    assert crossover([cell(1, 2.0, 1.0), cell(2, None, None)]) is None


def test_shapes_of_a_layer() -> None:
    assert gemm_shapes(PRESETS["llama3.1-8b"].dims) == {
        "qkv": (6144, 4096),
        "o": (4096, 4096),
        "mlp_in": (28672, 4096),
        "down": (4096, 14336),
    }
