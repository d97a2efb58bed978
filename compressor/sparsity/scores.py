"""Scores from weights and the size of their inputs: magnitude, Wanda and RIA.

Wanda (arXiv 2306.11695): |W_ij| ||X_j||. RIA (Relative Importance and Activations): |W_ij| relative to
its column's and to its row's sum, times ||X_j||^0.5; without the optional channel permutation.

Legend: R rows (outputs), C columns (inputs), T tokens.
"""

from __future__ import annotations

import torch

from compressor.calibration.sequential import Gram
from compressor.models.sparse.masks import keep_mask
from compressor.sparsity.method import Choice, OneShotSettings

RIA_POWER = 0.5


def magnitude(weight_RC: torch.Tensor, _inputs: Gram, settings: OneShotSettings) -> Choice:
    """Keep the largest |W| of every group."""
    return Choice(keep_mask=keep_mask(weight_RC.abs(), settings.pattern))


def wanda(weight_RC: torch.Tensor, inputs: Gram, settings: OneShotSettings) -> Choice:
    """Keep the largest Wanda scores of every group."""
    return Choice(keep_mask=keep_mask(wanda_scores(weight_RC, input_norms(inputs)), settings.pattern))


def ria(weight_RC: torch.Tensor, inputs: Gram, settings: OneShotSettings) -> Choice:
    """Keep the largest RIA scores of every group."""
    return Choice(keep_mask=keep_mask(ria_scores(weight_RC, input_norms(inputs)), settings.pattern))


def input_norms(inputs: Gram) -> torch.Tensor:
    """||X_j||_2 of every input channel over the calibration tokens, root of the mean square."""
    return (inputs.total.diagonal() / inputs.num_tokens).sqrt()


def wanda_scores(weight_RC: torch.Tensor, norms_C: torch.Tensor) -> torch.Tensor:
    """|W_ij| ||X_j||."""
    return weight_RC.abs() * norms_C


def ria_scores(weight_RC: torch.Tensor, norms_C: torch.Tensor) -> torch.Tensor:
    """(|W_ij| / column sum + |W_ij| / row sum) ||X_j||^0.5; a row or column of zeros scores zero."""
    size = weight_RC.abs()
    tiny = torch.finfo(size.dtype).tiny
    columns, rows = (size.sum(dim, keepdim=True).clamp_min(tiny) for dim in (0, 1))
    relative = size / columns + size / rows
    return relative * norms_C**RIA_POWER
