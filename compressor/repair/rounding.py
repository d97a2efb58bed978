"""Weights on an FP8 grid whose outputs are closest to what is wanted: rounding that makes up for itself.

Rounding every weight to its nearest neighbour on the grid is best only where inputs are uncorrelated and
nothing else is off. With G and C of `compressor.repair.least_squares`, the squared error of a weight Z is,
but for a constant and with a ridge towards the weight W0 before,

    |Z - W0|^2_(G + ridge) - 2 <C, Z - W0>

Columns are visited in order, again and again: each weight of a column takes the grid value that is best while
all other columns stay as they are, which is the neighbour nearest to the parabola's vertex. The first visit
starts from the least-squares solution, so what rounding a column costs is passed on to the columns after it;
later visits only improve on it (coordinate descent, QuantEase, arXiv 2309.01885). The error never rises.

The grid is E4M3 times a scale that is given: the maximum it belongs to stays at its place, so that whoever
takes the scale from the weights finds it again.

Legend: I inputs, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compressor.quantization.e4m3 import from_e4m3, scale_of, to_e4m3
from compressor.repair.choice import Repaired, Use, chosen_ridge
from compressor.repair.least_squares import NotPositiveDefiniteError, Sums, solve

_MOST_VISITS = 6
# Columns whose errors are passed on among themselves before the rest hears of them.
_BLOCK = 128


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """A weight that may be rounded once with `scale_of(amax)`.

    Attributes:
        weight: `[O, I]` in the dtype that is stored; none is larger than `amax`.
        amax: The maximum that its scale belongs to, a float32 scalar.
    """

    weight: torch.Tensor
    amax: torch.Tensor

    @property
    def acting(self) -> torch.Tensor:
        """What an FP8 kernel multiplies with, float32."""
        scale = scale_of(self.amax)
        return from_e4m3(to_e4m3(self.weight, scale), scale)


def solved_on_grid(
    now: Rounded,
    sums: dict[Use, Sums],
    keep_mask: torch.Tensor | None,
    *,
    amax: torch.Tensor,
    dtype: torch.dtype,
) -> tuple[Rounded, Repaired]:
    """The repaired weight, and whether it is better, both rounded, than the weight as it is.

    Args:
        now: The weight as it is.
        sums: Of the windows of each use, around `now.weight`: of inputs as FP8 kernels read them.
        keep_mask: bool `[O, I]`: weights outside it stay 0.
        amax: That the new weight is to be rounded with, at least the largest absolute value of `now.weight`.
        dtype: Of 16 bits or more, in which the new weight is stored.
    """
    ridge = chosen_ridge(sums, keep_mask)
    before, both = now.weight.double(), sums["fit"] + sums["choose"]
    try:
        change = solve(both.gram, both.cross, ridge, keep_mask)
    except NotPositiveDefiniteError:
        return now, Repaired(accepted=False, ridge=ridge, error_ratio=None)
    fixed = _fixed(now.weight, keep_mask, amax)
    grid = on_grid(before, change, both, ridge=ridge, fixed=fixed, amax=amax)
    made = Rounded(weight=_stored(grid, now.weight, fixed, amax).to(dtype), amax=amax)
    errors = [sums["accept"].error_after(own.acting.double() - before) for own in (now, made)]
    ratio = errors[1] / errors[0] if errors[0] > 0 else None
    return made, Repaired(accepted=ratio is not None and ratio < 1, ridge=ridge, error_ratio=ratio)


def on_grid(
    weight: torch.Tensor,
    change: torch.Tensor,
    sums: Sums,
    *,
    ridge: float,
    fixed: torch.Tensor,
    amax: torch.Tensor,
) -> torch.Tensor:
    """A weight on the grid, float64 `[O, I]`; no other grid value of any one weight would be better.

    Every column is visited at most `_MOST_VISITS` times; the last visits change next to nothing.

    Args:
        weight: Around which the sums are, float64.
        change: To start from, such as the least-squares solution.
        sums: Of the tokens to fit.
        ridge: As a fraction of the Gram matrix's mean diagonal.
        fixed: bool `[O, I]`: weights that are only rounded.
        amax: Maximum that the grid's scale belongs to.
    """
    scale = scale_of(amax)
    system = sums.gram.double().clone()
    system.diagonal().add_(ridge * system.diagonal().mean())
    vertex_of = system.diagonal().clamp_min(torch.finfo(torch.float64).tiny)
    held = fixed.T.contiguous()
    # One row per input, so that what is worked on lies together.
    values = (weight + change).T.contiguous()
    values = torch.where(held, _nearest(weight.T, scale), values)
    left = sums.cross.double().T - system @ (values - weight.T)
    for _ in range(_MOST_VISITS):
        moved_most = 0.0
        for start in range(0, len(values), _BLOCK):
            block = slice(start, start + _BLOCK)
            inside, own = system[block, block], left[block].clone()
            moved = torch.zeros_like(own)
            for column in range(len(own)):
                place = start + column
                found = _nearest(values[place] + own[column] / vertex_of[place], scale)
                found = torch.where(held[place], values[place], found)
                moved[column] = found - values[place]
                values[place] = found
                own[column + 1 :].addr_(inside[column + 1 :, column], moved[column], alpha=-1)
            left -= system[:, block] @ moved
            moved_most = max(moved_most, moved.abs().max().item())
        if moved_most == 0:
            break
    return values.T


def _nearest(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return from_e4m3(to_e4m3(values, scale), scale).double()


def _fixed(weight: torch.Tensor, keep_mask: torch.Tensor | None, amax: torch.Tensor) -> torch.Tensor:
    """What may not change: dropped weights, and the maximum that the scale belongs to, if it is here."""
    fixed = weight.abs().float() == amax.to(weight.device)
    return fixed if keep_mask is None else fixed | ~keep_mask


def _stored(
    grid: torch.Tensor, weight: torch.Tensor, fixed: torch.Tensor, amax: torch.Tensor
) -> torch.Tensor:
    """The grid's values as weights of 16 bits or more, which rounding brings back to the grid.

    Sixteen bits are nearer to a value of eight than its neighbours are. What is fixed is stored as it was,
    and nothing is larger than the maximum, so that the scale follows from the weights too.
    """
    return torch.where(fixed, weight.float(), grid.float().clamp(-amax, amax))
