"""SparseGPT (arXiv 2301.00774): drop the weights whose loss can best be repaired, and repair it.

With H the Hessian of the layer's squared output error and U the upper Cholesky factor of its inverse,
a weight's cost is (w_j / U_jj)^2. Columns are visited from left to right; what dropping weights costs
is moved onto the columns not yet visited.

Departure: dampening is a fraction of the diagonal's mean as measured, before dead inputs get their 1, so
that it does not depend on how many are dead or on the inputs' scale.

Legend: R rows (outputs), C columns (inputs), T tokens.
"""

from __future__ import annotations

import torch

from compressor.calibration.sequential import Gram
from compressor.models.sparse.masks import keep_mask
from compressor.models.sparse.pattern import Pattern
from compressor.repair.least_squares import NotPositiveDefiniteError
from compressor.sparsity.method import DAMPENING_FRACTION, Choice, OneShotSettings

_DAMPENING_STEP = 10.0
_MAX_DAMPENING_FRACTION = 10.0


def sparsegpt(weight_RC: torch.Tensor, inputs: Gram, settings: OneShotSettings) -> Choice:
    """Choose the mask of one matrix and update what is kept.

    Args:
        weight_RC: float32 or float64; not changed.
        inputs: Gram matrix of the inputs, same dtype.
        settings: All of them.

    Raises:
        NotPositiveDefiniteError: when the Hessian is not, and the dampening may not be raised further.
    """
    pattern, block_size, gram_CC = settings.pattern, settings.block_size, inputs.total
    if block_size % pattern.group_size:
        raise ValueError(f"blocks of {block_size} columns split groups of {pattern.group_size}")
    factor_CC, used = _factor(
        gram_CC, inputs.num_tokens, settings.dampening_fraction, raise_dampening=settings.raise_dampening
    )
    factor_CC = factor_CC.to(weight_RC.dtype)
    weight = weight_RC.masked_fill(gram_CC.diagonal() == 0, 0)
    kept = torch.empty_like(weight, dtype=torch.bool)
    for start in range(0, weight.shape[1], block_size):
        end = min(start + block_size, weight.shape[1])
        errors = _sparsify_block_(
            weight[:, start:end], kept[:, start:end], factor_CC[start:end, start:end], pattern
        )
        weight[:, end:] -= errors @ factor_CC[start:end, end:]
    return Choice(weight=weight.masked_fill(~kept, 0), keep_mask=kept, dampening_fraction=used)


def _sparsify_block_(
    weight: torch.Tensor, kept: torch.Tensor, factor: torch.Tensor, pattern: Pattern
) -> torch.Tensor:
    """Visit a block's columns in order; returns every column's error over its diagonal entry."""
    # Transposed, so that a column is contiguous.
    columns, kept_columns = (
        weight.T.contiguous(),
        torch.empty_like(kept.T, memory_format=torch.contiguous_format),
    )
    errors = torch.empty_like(columns)
    diagonal = factor.diagonal()
    for column in range(len(columns)):
        if column % pattern.group_size == 0:
            group = slice(column, column + pattern.group_size)
            scores = (columns[group] / diagonal[group, None]).square()
            kept_columns[group] = keep_mask(scores.T, pattern).T
        errors[column] = columns[column].masked_fill(kept_columns[column], 0) / diagonal[column]
        columns[column:].addr_(factor[column, column:], errors[column], alpha=-1)
    weight.copy_(columns.T)
    kept.copy_(kept_columns.T)
    return errors.T


def _factor(
    gram_CC: torch.Tensor, num_tokens: int, dampening_fraction: float, *, raise_dampening: bool
) -> tuple[torch.Tensor, float]:
    """The upper Cholesky factor of the inverse Hessian, float64, and the dampening it took."""
    fraction = dampening_fraction
    while True:
        try:
            # Nested, so that no more than two float64 matrices live at once.
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(_dampened(gram_CC, num_tokens, fraction)))
            return torch.linalg.cholesky(inverse, upper=True), fraction
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            if not raise_dampening or fraction >= _MAX_DAMPENING_FRACTION:
                raise NotPositiveDefiniteError(
                    f"the Hessian is not positive definite at a dampening of {fraction:g}"
                ) from error
        raised = max(fraction, DAMPENING_FRACTION / _DAMPENING_STEP) * _DAMPENING_STEP
        fraction = min(raised, _MAX_DAMPENING_FRACTION)


def _dampened(gram_CC: torch.Tensor, num_tokens: int, fraction: float) -> torch.Tensor:
    """The Hessian in float64, a fraction of its mean diagonal added to it, 1 where an input is dead."""
    hessian = gram_CC.to(torch.float64, copy=True).mul_(2 / num_tokens)
    diagonal = hessian.diagonal()
    mean = diagonal.mean()
    diagonal[diagonal == 0] = 1
    diagonal.add_(fraction * mean)
    return hessian
