"""Least squares around a weight, from sums over tokens alone.

A linear layer of weight W0 reads X and should give Y. The change that mends it best, with a ridge, is

    Delta = C (G + ridge * mean(diag G) * I)^-1,   G = X^T D^2 X,   C = (Y - X W0^T)^T D^2 X

with a row of D per token. Where a mask says which weights exist, every output row has a system of its own
over its kept inputs. The squared error of any change over the same tokens follows from G, C and the error
before it, so that tokens that were held out are compared without being seen again.

Legend: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

# Rows of a masked matrix that are solved at once: what a batch of their systems takes stays below this.
_BATCH_BYTES = 256 << 20


class NotPositiveDefiniteError(ValueError):
    """A matrix has no Cholesky factor: what was added to its diagonal is less than its rounding."""


@dataclass(kw_only=True)
class Sums:
    """What least squares needs to know of some tokens, of one linear layer.

    Attributes:
        gram: G, `[I, I]`; layers with one input share it.
        cross: C, `[O, I]`.
        error: Squared error before the change, rows weighted.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    error: float = 0.0

    def add(self, inputs_TI: torch.Tensor, missing_TO: torch.Tensor) -> None:
        """Add tokens to `cross` and `error`.

        Args:
            inputs_TI: float32 inputs, rows multiplied by their weight.
            missing_TO: float32 Y - X W0^T, rows multiplied by their weight.
        """
        self.cross.addmm_(missing_TO.T, inputs_TI)
        self.error += missing_TO.square().sum(dtype=torch.float64).item()

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            gram=self.gram + other.gram, cross=self.cross + other.cross, error=self.error + other.error
        )

    def error_after(self, change_OI: torch.Tensor) -> float:
        """Squared error once the weight has changed."""
        change = change_OI.double()
        gained = ((change @ self.gram.double()) * change).sum() - 2 * (change * self.cross.double()).sum()
        return self.error + gained.item()


def solve(sums: Sums, ridge: float, keep_mask: torch.Tensor | None = None) -> torch.Tensor:
    """The change of least squared error, float64 `[O, I]`.

    Args:
        sums: Of the tokens to fit.
        ridge: As a fraction of the Gram matrix's mean diagonal; above 0.
        keep_mask: bool `[O, I]`; weights outside it do not change.

    Raises:
        NotPositiveDefiniteError: for a ridge that is too small.
    """
    gram, cross = sums.gram.to(torch.float64, copy=True), sums.cross.double()
    strength = ridge * gram.diagonal().mean()
    if strength == 0:  # every input was 0
        return torch.zeros_like(cross)
    if keep_mask is None:
        gram.diagonal().add_(strength)
        return torch.cholesky_solve(cross.T, _factor(gram)).T
    change = torch.zeros_like(cross)
    for rows in _batches(keep_mask):
        change[rows] = _solve_rows(gram, cross[rows], keep_mask[rows], strength)
    return change


def _batches(keep_mask: torch.Tensor) -> Iterable[slice]:
    """Rows that fit into the memory of a batch."""
    num_kept = int(keep_mask.sum(dim=1).max())
    size = max(1, _BATCH_BYTES // (3 * 8 * max(1, num_kept) ** 2))
    return (slice(start, start + size) for start in range(0, len(keep_mask), size))


def _solve_rows(
    gram: torch.Tensor, cross: torch.Tensor, keep_mask: torch.Tensor, strength: torch.Tensor
) -> torch.Tensor:
    """Every row's own system over its kept inputs; rows with fewer are filled up with inputs that are 0."""
    num_kept = int(keep_mask.sum(dim=1).max())
    kept = torch.sort(keep_mask, dim=1, descending=True, stable=True).indices[:, :num_kept]
    is_kept = keep_mask.gather(1, kept)
    systems = gram[kept[:, :, None], kept[:, None, :]]
    systems *= is_kept[:, :, None] & is_kept[:, None, :]
    systems.diagonal(dim1=1, dim2=2).add_(strength)
    wanted = cross.gather(1, kept) * is_kept
    found = torch.cholesky_solve(wanted[:, :, None], _factor(systems))[:, :, 0]
    return torch.zeros_like(cross).scatter(1, kept, found * is_kept)


def _factor(systems: torch.Tensor) -> torch.Tensor:
    factor: torch.Tensor
    factor, failed = torch.linalg.cholesky_ex(systems)
    if failed.any():
        raise NotPositiveDefiniteError("the Gram matrix is not positive definite")
    return factor
