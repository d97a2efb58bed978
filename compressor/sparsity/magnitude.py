"""Magnitude: a weight's importance is its absolute value."""

from __future__ import annotations

import torch

from compressor.calibration.sequential import Gram
from compressor.models.sparse.pattern import keep_mask
from compressor.sparsity.method import Choice, OneShotSettings


def magnitude(weight_RC: torch.Tensor, _inputs: Gram, settings: OneShotSettings) -> Choice:
    """Keep the largest |W| of every group."""
    return Choice(keep_mask=keep_mask(weight_RC.abs(), settings.pattern))
