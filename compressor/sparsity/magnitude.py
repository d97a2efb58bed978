"""Magnitude: a weight's importance is its absolute value."""

from __future__ import annotations

import torch


def magnitude_scores(weight_RC: torch.Tensor) -> torch.Tensor:
    """|W|, in the weight's dtype."""
    return weight_RC.abs()
