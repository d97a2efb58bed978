"""One matrix made sparse by a named method, with what it costs on the calibration data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compressor.calibration.sequential import Gram
from compressor.choices.sparsity import SPARSITY_METHODS
from compressor.sparsity.method import OneShotMethod, OneShotSettings


@dataclass(frozen=True, kw_only=True)
class SparseMatrix:
    """The outcome.

    Attributes:
        weight: Zero where not kept, in the dtype that was given.
        keep_mask: True = kept.
        relative_error: ||(W' - W) X||² / ||W X||² on the calibration data, of the stored values.
        dampening_fraction: What SparseGPT used; None for other methods.
    """

    weight: torch.Tensor
    keep_mask: torch.Tensor
    relative_error: float
    dampening_fraction: float | None = None


def sparsify_matrix(
    weight_RC: torch.Tensor, inputs: Gram, *, method: str, settings: OneShotSettings, update_weights: bool
) -> SparseMatrix:
    """Sparsify a matrix in float32 and store it in its own dtype.

    Args:
        weight_RC: `[out, in]`; not changed.
        inputs: Gram matrix of the layer's inputs, float32.
        method: A key of `SPARSITY_METHODS`.
        settings: Of the method.
        update_weights: Keep the new values of a method that changes kept weights; else its mask alone.

    Raises:
        NotPositiveDefiniteError: from SparseGPT.
    """
    choose: OneShotMethod = SPARSITY_METHODS[method].load()
    weight = weight_RC.float()
    choice = choose(weight, inputs, settings)
    sparse = choice.weight if choice.weight is not None and update_weights else weight
    stored = sparse.masked_fill(~choice.keep_mask, 0).to(weight_RC.dtype)
    return SparseMatrix(
        weight=stored,
        keep_mask=choice.keep_mask,
        relative_error=relative_error(weight, stored.float(), inputs.total),
        dampening_fraction=choice.dampening_fraction,
    )


def relative_error(weight_RC: torch.Tensor, changed_RC: torch.Tensor, gram_CC: torch.Tensor) -> float:
    """||(W' - W) X||² / ||W X||² from the Gram matrix of X; 0 when the output itself is 0."""
    difference = changed_RC - weight_RC
    lost = ((difference @ gram_CC) * difference).sum(dtype=torch.float64).item()
    total = ((weight_RC @ gram_CC) * weight_RC).sum(dtype=torch.float64).item()
    return lost / total if total else 0.0
