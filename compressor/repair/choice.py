"""Whether a least-squares solution is taken: windows to fit it on, to choose its ridge, and to accept it.

A weight stays as it was unless its error falls on the windows to accept, of the values that are stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from compressor.repair.least_squares import NotPositiveDefiniteError, Sums, solve

Use = Literal["fit", "choose", "accept"]

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
# Of every so many windows one chooses the ridge, one accepts, and the rest is fitted.
_PERIOD = 8
# Outputs that choose a linear layer's ridge, so that trying all of them costs less than the final solution.
_CHOOSING_OUTPUTS = 64


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What became of one linear layer.

    Attributes:
        accepted: Whether its weight changed.
        ridge: That did best on the windows to choose.
        error_ratio: Weighted squared error of the repaired weight on the windows to accept, over that of the
            weight as it was; None where that was 0, or no ridge gave a solution.
    """

    accepted: bool
    ridge: float
    error_ratio: float | None


def use_of(window: int, num_windows: int) -> Use:
    """What a window is for; at least three are needed."""
    period = min(_PERIOD, num_windows)
    uses: dict[int, Use] = {period // 2: "choose", period - 1: "accept"}
    return uses.get(window % period, "fit")


def solved(
    weight: torch.Tensor, sums: dict[Use, Sums], keep_mask: torch.Tensor | None
) -> tuple[torch.Tensor, Repaired]:
    """The repaired weight in its own dtype, and whether it is better than what is there.

    Args:
        weight: `[O, I]`; not changed.
        sums: Of the windows of each use.
        keep_mask: bool `[O, I]`: weights outside it stay 0.
    """
    ridge = chosen_ridge(sums, keep_mask)
    before, both = weight.double(), sums["fit"] + sums["choose"]
    try:
        change = solve(both.gram, both.cross, ridge, keep_mask)
    except NotPositiveDefiniteError:
        return weight, Repaired(accepted=False, ridge=ridge, error_ratio=None)
    repaired = (before + change).to(weight.dtype)
    error_before = sums["accept"].error.sum().item()
    ratio = sums["accept"].error_after(repaired.double() - before) / error_before if error_before else None
    return repaired, Repaired(accepted=ratio is not None and ratio < 1, ridge=ridge, error_ratio=ratio)


def chosen_ridge(sums: dict[Use, Sums], keep_mask: torch.Tensor | None) -> float:
    """The ridge of least error on the windows to choose, by outputs that are evenly spread."""
    num_outputs = len(sums["fit"].cross)
    outputs = torch.arange(0, num_outputs, max(1, num_outputs // _CHOOSING_OUTPUTS))
    fit, choose = sums["fit"].of(outputs), sums["choose"].of(outputs)
    mask = None if keep_mask is None else keep_mask[outputs]

    def error(ridge: float) -> float:
        try:
            return choose.error_after(solve(fit.gram, fit.cross, ridge, mask))
        except NotPositiveDefiniteError:
            return math.inf

    return min(RIDGES, key=error)
