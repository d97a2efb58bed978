"""One matrix made sparse by a named method, with what it costs on the calibration data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from compressor.models.sparse.pattern import Pattern, keep_mask
from compressor.sparsity.magnitude import magnitude_scores
from compressor.sparsity.sparsegpt import sparsegpt
from compressor.sparsity.wanda import input_norms, ria_scores, wanda_scores

Scores = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Weight and input norms to scores. SparseGPT is not here: it changes weights while it chooses.
SCORES: dict[str, Scores] = {
    "magnitude": lambda weight, _norms: magnitude_scores(weight),
    "wanda": wanda_scores,
    "ria": ria_scores,
}
SPARSEGPT = "sparsegpt"


@dataclass(frozen=True, kw_only=True)
class OneShot:
    """How a matrix is made sparse.

    Attributes:
        method: A key of `SCORES`, or `sparsegpt`.
        pattern: N:M.
        block_size: SparseGPT's.
        dampening_fraction: SparseGPT's.
        raise_dampening: Whether SparseGPT may raise it.
        update_weights: Whether SparseGPT's update is kept; its mask alone otherwise.
    """

    method: str
    pattern: Pattern
    block_size: int
    dampening_fraction: float
    raise_dampening: bool
    update_weights: bool


@dataclass(frozen=True, kw_only=True)
class SparseMatrix:
    """The outcome.

    Attributes:
        weight: Zero where not kept, in the dtype that was given.
        keep_mask: True = kept.
        relative_error: ||(W' - W) X||² / ||W X||² on the calibration data, of the stored values.
        dampening_fraction: What SparseGPT used; None for the others.
    """

    weight: torch.Tensor
    keep_mask: torch.Tensor
    relative_error: float
    dampening_fraction: float | None = None


def sparsify_matrix(
    weight_RC: torch.Tensor, gram_CC: torch.Tensor, *, num_tokens: int, how: OneShot
) -> SparseMatrix:
    """Sparsify a matrix in float32 and store it in its own dtype.

    Args:
        weight_RC: `[out, in]`; not changed.
        gram_CC: float32 sum over the calibration tokens of x xᵀ.
        num_tokens: Tokens behind it.
        how: Method and settings.

    Raises:
        NotPositiveDefiniteError: from SparseGPT.
    """
    weight = weight_RC.float()
    dampening: float | None = None
    if how.method == SPARSEGPT:
        result = sparsegpt(
            weight,
            gram_CC,
            num_tokens=num_tokens,
            pattern=how.pattern,
            block_size=how.block_size,
            dampening_fraction=how.dampening_fraction,
            raise_dampening=how.raise_dampening,
        )
        kept, dampening = result.keep_mask, result.dampening_fraction
        sparse = result.weight if how.update_weights else weight
    else:
        norms = input_norms(gram_CC, num_tokens=num_tokens)
        kept, sparse = keep_mask(SCORES[how.method](weight, norms), how.pattern), weight
    stored = sparse.masked_fill(~kept, 0).to(weight_RC.dtype)
    return SparseMatrix(
        weight=stored,
        keep_mask=kept,
        relative_error=relative_error(weight, stored.float(), gram_CC),
        dampening_fraction=dampening,
    )


def relative_error(weight_RC: torch.Tensor, changed_RC: torch.Tensor, gram_CC: torch.Tensor) -> float:
    """||(W' - W) X||² / ||W X||² from the Gram matrix of X; 0 when the output itself is 0."""
    difference = changed_RC - weight_RC
    lost = ((difference @ gram_CC) * difference).sum(dtype=torch.float64).item()
    total = ((weight_RC @ gram_CC) * weight_RC).sum(dtype=torch.float64).item()
    return lost / total if total else 0.0
