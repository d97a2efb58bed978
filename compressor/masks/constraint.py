"""The Lagrangian that brings masks to an exact shape (Sheared LLaMA, arXiv 2310.06694, section 2.1).

With s the expected share of removed units of a row and t its target, every row adds

    l1 (s - t) + l2 (s - t)²

and an axis adds the mean of its rows to the loss. Masks and weights descend, both multipliers ascend, all of
them by the same optimizer; so the multipliers grow for as long as a row misses its target. The target rises
linearly from nothing while it warms up. As the student keeps equally many units in every layer, and equally
many query heads in every key/value group, each of these is a row with multipliers of its own; the published
constraint has one pair per axis.
"""

from __future__ import annotations

import torch
from torch import nn


class Constraint(nn.Module):
    """Multipliers of one axis.

    Attributes:
        linear: l1, `[R]`.
        quadratic: l2, `[R]`.
        share: The share of every row's units that is to be removed in the end.
    """

    def __init__(self, num_rows: int, share: float) -> None:
        """Multipliers of 0 for rows that are to lose this share of their units."""
        super().__init__()
        self.linear = nn.Parameter(torch.zeros(num_rows))
        self.quadratic = nn.Parameter(torch.zeros(num_rows))
        self.share = share

    def forward(self, count_RU: torch.Tensor, warmth: float) -> torch.Tensor:
        """The penalty, from how far each unit is expected to stay; `warmth` (0 to 1) scales the target."""
        miss = 1 - count_RU.mean(1) - self.share * warmth
        return (self.linear * miss + self.quadratic * miss.square()).mean()
