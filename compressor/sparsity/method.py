"""What a one-shot sparsity method is given, and what it returns.

It is a function `method(weight_RC, inputs, settings) -> Choice`: of a matrix in float32 `[out, in]`, which it
does not change, the `Gram` matrix of the layer's inputs over the calibration tokens, and the settings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compressor.models.sparse.pattern import TWO_OF_FOUR, Pattern

BLOCK_SIZE = 128
DAMPENING_FRACTION = 0.01


@dataclass(frozen=True, kw_only=True)
class OneShotSettings:
    """Settings of a recipe that methods may read.

    Attributes:
        pattern: N:M.
        block_size: Columns that SparseGPT handles between updates of the rest of the matrix; a multiple of M.
        dampening_fraction: Added to the Hessian's diagonal by SparseGPT, as a fraction of its mean.
        raise_dampening: Whether SparseGPT takes ten times the fraction, up to 10, while the Hessian is not
            positive definite.
    """

    pattern: Pattern = TWO_OF_FOUR
    block_size: int = BLOCK_SIZE
    dampening_fraction: float = DAMPENING_FRACTION
    raise_dampening: bool = False


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a method chose for one matrix.

    Attributes:
        keep_mask: bool `[out, in]`, True = kept, with exactly N of every M.
        weight: New values of the kept weights; None where they stay as they are.
        dampening_fraction: What SparseGPT used; None for other methods.
    """

    keep_mask: torch.Tensor
    weight: torch.Tensor | None = None
    dampening_fraction: float | None = None
