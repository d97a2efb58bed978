"""2:4 products on this GPU equal the dense ones; `tests.gpu.sparse_gemm` measures them."""

from __future__ import annotations

import pytest

from tests.gpu.sparse_gemm import measure


@pytest.mark.parametrize("tokens", [16, 256])
def test_a_sparse_product_equals_the_dense_one(tokens: int) -> None:
    cell = measure("bf16", (512, 1024), tokens)
    assert cell.reason is None
    assert cell.speedup is not None
