"""Least squares around a weight, from sums over tokens alone.

A linear layer of weight W0 reads X and should give Y. The change that mends it best, with a ridge, is

    Delta = C (G + ridge * mean(diag G) * I)^-1,   G = X^T D^2 X,   C = (Y - X W0^T)^T D^2 X

with a row of D per token. Where a mask says which weights exist, every output row has a system of its own
over its kept inputs; all of them are solved at once by conjugate gradients, which need no more than products
with G. The squared error of any change over the same tokens follows from G, C and the error before it, so
that tokens that were held out are compared without being seen again.

Legend: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# A row's system is solved once what is left of its right-hand side is this small; its error then differs from
# the least one by about the square.
_TOLERANCE = 1e-5
_MOST_ITERATIONS = 1000
_INDEFINITE = "the Gram matrix is not positive definite"


class NotPositiveDefiniteError(ValueError):
    """A matrix has no Cholesky factor: what was added to its diagonal is less than its rounding."""


@dataclass(kw_only=True)
class Sums:
    """What least squares needs to know of some tokens, of linear layers with one input.

    Attributes:
        gram: G, float32 `[I, I]`.
        cross: C, float32 `[O, I]`, the outputs of all layers after each other.
        error: Squared error of every output before the change, rows weighted; float64 `[O]`.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    error: torch.Tensor

    @classmethod
    def empty(cls, num_inputs: int, num_outputs: int, device: torch.device | str = "cpu") -> Sums:
        """Of no tokens."""
        return cls(
            gram=torch.zeros(num_inputs, num_inputs, device=device),
            cross=torch.zeros(num_outputs, num_inputs, device=device),
            error=torch.zeros(num_outputs, device=device, dtype=torch.float64),
        )

    def add(self, inputs_TI: torch.Tensor, missing_TO: torch.Tensor) -> None:
        """Add tokens.

        Args:
            inputs_TI: float32 inputs, rows multiplied by their weight.
            missing_TO: float32 Y - X W0^T, rows multiplied by their weight.
        """
        self.gram.addmm_(inputs_TI.T, inputs_TI)
        self.cross.addmm_(missing_TO.T, inputs_TI)
        self.error += missing_TO.square().sum(dim=0, dtype=torch.float64)

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            gram=self.gram + other.gram, cross=self.cross + other.cross, error=self.error + other.error
        )

    def of(self, outputs: slice | torch.Tensor) -> Sums:
        """Those of some outputs."""
        return Sums(gram=self.gram, cross=self.cross[outputs], error=self.error[outputs])

    def after(self, change_OI: torch.Tensor) -> Sums:
        """The same tokens once the weights have changed; `cross` in float64."""
        change, cross = change_OI.double(), self.cross.double()
        left = cross - change @ self.gram.double()
        return Sums(gram=self.gram, cross=left, error=self.error - (change * (cross + left)).sum(dim=1))

    def error_after(self, change_OI: torch.Tensor) -> float:
        """Squared error of all outputs once the weights have changed."""
        return self.after(change_OI).error.sum().item()


def solve(
    gram: torch.Tensor, cross: torch.Tensor, ridge: float, keep_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The change of least squared error, float64 `[O, I]`.

    Args:
        gram: G of the tokens to fit.
        cross: C of the same tokens.
        ridge: As a fraction of the Gram matrix's mean diagonal; above 0.
        keep_mask: bool `[O, I]`; weights outside it do not change.

    Raises:
        NotPositiveDefiniteError: for a ridge that is too small.
    """
    system, wanted = gram.to(torch.float64, copy=True), cross.double()
    strength = ridge * system.diagonal().mean()
    if strength == 0:  # every input was 0
        return torch.zeros_like(wanted)
    system.diagonal().add_(strength)
    if keep_mask is not None:
        return _conjugate_gradients(system, wanted, keep_mask)
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed:
        raise NotPositiveDefiniteError(_INDEFINITE)
    return torch.cholesky_solve(wanted.T, factor).T


def _conjugate_gradients(system: torch.Tensor, wanted: torch.Tensor, keep_mask: torch.Tensor) -> torch.Tensor:
    """Every row's own system over its kept inputs, preconditioned by the diagonal."""
    if (system.diagonal() <= 0).any():
        raise NotPositiveDefiniteError(_INDEFINITE)
    scale = keep_mask / system.diagonal()
    change = torch.zeros_like(wanted)
    left = wanted * keep_mask
    enough = _TOLERANCE**2 * (left * left * scale).sum(dim=1)
    direction = left * scale
    size = (left * direction).sum(dim=1)
    for _ in range(_MOST_ITERATIONS):
        if (size <= enough).all():
            break
        product = (direction @ system) * keep_mask
        curvature = (direction * product).sum(dim=1)
        if (curvature < 0).any():
            raise NotPositiveDefiniteError(_INDEFINITE)
        step = torch.where(curvature > 0, size / curvature, 0.0)[:, None]
        change += step * direction
        left -= step * product
        scaled = left * scale
        before, size = size, (left * scaled).sum(dim=1)
        direction = scaled + torch.where(before > 0, size / before, 0.0)[:, None] * direction
    return change
