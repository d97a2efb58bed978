"""FP8 and 2:4 products by shape."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from compressor.models.presets import PRESETS
from tests.gpu.sparse_gemm import TOKENS, crossover, gemm_shapes, measure
from tests.gpu.study.cells import Cell, Setting

MODELS = ("llama3.1-8b", "4b-width")  # 4b-depth has the layers of the first
_TOY_SHAPE, _TOY_TOKENS = (64, 128), (16, 32)


def gemm_cells(setting: Setting) -> Iterator[Cell]:
    """A cell for each shape and precision, with all numbers of tokens."""
    shapes = {
        f"{model} {name}": shape
        for model in MODELS
        for name, shape in gemm_shapes(PRESETS[model].dims).items()
    }
    if setting.toy:
        shapes = {"toy": _TOY_SHAPE}
    for precision in ("fp8", "bf16"):
        for name, shape in shapes.items():
            yield Cell(key=f"{name} {precision}", measure=partial(_product, precision, shape, setting))


def _product(precision: str, shape: tuple[int, int], setting: Setting) -> dict[str, Any]:
    tokens = _TOY_TOKENS if setting.toy else TOKENS
    cells = [measure(precision, shape, number, device=setting.device) for number in tokens]
    reasons = [cell.reason for cell in cells if cell.reason]
    measured = [cell for cell in cells if cell.speedup]
    if not measured:
        raise RuntimeError(reasons[0])
    return {
        "out_features": shape[0],
        "in_features": shape[1],
        "pays_from_tokens": crossover(cells),
        "dense_us": {cell.tokens: cell.dense_us for cell in measured},
        "sparse_us": {cell.tokens: cell.sparse_us for cell in measured},
        "reasons": sorted(set(reasons)),
    }
