"""Branches against least squares on every token, in float64."""

from __future__ import annotations

import pytest
import torch

from compressor.models.sparse.low_rank import group_sums
from compressor.models.sparse.masks import keep_mask
from compressor.repair.branch import RIDGE, grouped, start_branch
from compressor.repair.least_squares import Sums, solve

TOKENS, INPUTS, OUTPUTS, GROUP = 200, 24, 7, 4


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs() -> torch.Tensor:
    """Channels that belong together, and some larger than others, as in a model."""
    mixed = drawn(TOKENS, INPUTS, seed=0) @ drawn(INPUTS, INPUTS, seed=1)
    return mixed * torch.linspace(0.1, 3, INPUTS)


def ridge_by_lstsq(groups: torch.Tensor, missing: torch.Tensor, ridge: float) -> torch.Tensor:
    """As rows beside the data: the square root of the ridge times the identity, and zeros."""
    strength = ridge * groups.square().sum(0).mean()
    rows = torch.cat([groups, strength.sqrt() * torch.eye(groups.shape[1])])
    wanted = torch.cat([missing, torch.zeros(groups.shape[1], missing.shape[1])])
    solution: torch.Tensor = torch.linalg.lstsq(rows, wanted).solution
    return solution.T


def test_the_start_is_the_least_squares_solution_and_never_does_harm() -> None:
    x, dense = inputs(), drawn(OUTPUTS, INPUTS, seed=2)
    masked = dense * keep_mask(dense.abs())
    for sparse in (masked, 1.2 * masked, torch.zeros_like(dense)):
        branch = start_branch(dense, sparse, x.T @ x, group_size=GROUP)
        missing = x @ (dense - sparse).T
        groups = x.unflatten(1, (-1, GROUP)).sum(2)
        expected = ridge_by_lstsq(groups, missing, RIDGE)
        torch.testing.assert_close(branch.up.double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(branch.down, group_sums(INPUTS, GROUP))
        before, after = missing.square().sum(), (missing - groups @ branch.up.double().T).square().sum()
        assert after < before


def test_it_does_not_undo_what_a_method_has_made_up_for() -> None:
    """Where the kept weights are the best ones already, the published start adds error; this one does not."""
    x, dense = inputs(), drawn(OUTPUTS, INPUTS, seed=2)
    mask = keep_mask(dense.abs())
    repaired = torch.zeros_like(dense)
    for row, kept in enumerate(mask):
        repaired[row, kept] = torch.linalg.lstsq(x[:, kept], (x @ dense[row])[:, None]).solution[:, 0]
    missing = x @ (dense - repaired).T
    published = (dense - repaired).unflatten(1, (-1, GROUP)).mean(2)
    groups = x.unflatten(1, (-1, GROUP)).sum(2)
    ours = start_branch(dense, repaired, x.T @ x, group_size=GROUP).up.double()
    assert (missing - groups @ published.T).square().sum() > missing.square().sum()
    assert (missing - groups @ ours.T).square().sum() < missing.square().sum()


def test_inputs_that_are_constant_in_a_group_are_restored() -> None:
    x, dense = (
        drawn(TOKENS, INPUTS // GROUP, seed=3).repeat_interleave(GROUP, dim=1),
        drawn(2, INPUTS, seed=4),
    )
    sparse = dense * keep_mask(dense.abs())
    branch = start_branch(dense, sparse, x.T @ x, group_size=GROUP)
    found = x @ sparse.T + x @ branch.down.double().T @ branch.up.double().T
    torch.testing.assert_close(found, x @ dense.T, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_what_is_left_after_a_change_is_fitted_by_groups(ridge: float) -> None:
    x, weight, wanted = inputs(), drawn(OUTPUTS, INPUTS, seed=2), drawn(TOKENS, OUTPUTS, seed=3)
    change = 0.1 * drawn(OUTPUTS, INPUTS, seed=4)
    missing = wanted - x @ weight.T
    sums = Sums(gram=x.T @ x, cross=missing.T @ x, error=missing.square().sum(0))
    left = grouped(sums.after(change), GROUP)
    still = wanted - x @ (weight + change).T
    groups = x.unflatten(1, (-1, GROUP)).sum(2)
    found = solve(left.gram, left.cross, ridge)
    torch.testing.assert_close(found, ridge_by_lstsq(groups, still, ridge))
    torch.testing.assert_close(left.error, still.square().sum(0))
    assert left.error_after(found) == pytest.approx((still - groups @ found.T).square().sum().item())
