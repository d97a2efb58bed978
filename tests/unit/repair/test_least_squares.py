"""The solver against a float64 reference that sees every token: ridge regression row by row, by lstsq."""

from __future__ import annotations

import pytest
import torch

from compressor.repair.least_squares import NotPositiveDefiniteError, Sums, solve

NUM_TOKENS, NUM_INPUTS, NUM_OUTPUTS = 200, 24, 9


def tokens(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs whose channels differ in size and depend on each other, and what is missing of the outputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(NUM_INPUTS, NUM_INPUTS, generator=generator, dtype=torch.float64)
    inputs = torch.randn(NUM_TOKENS, NUM_INPUTS, generator=generator, dtype=torch.float64) @ mixing
    return inputs, torch.randn(NUM_TOKENS, NUM_OUTPUTS, generator=generator, dtype=torch.float64)


def sums_of(inputs: torch.Tensor, missing: torch.Tensor, *, parts: int = 1) -> Sums:
    """As a walk gathers them, window by window."""
    sums = Sums.empty(NUM_INPUTS, NUM_OUTPUTS)
    for x, y in zip(inputs.float().chunk(parts), missing.float().chunk(parts), strict=True):
        sums.add(x, y)
    return sums


def reference(inputs: torch.Tensor, missing: torch.Tensor, ridge: float, kept: torch.Tensor) -> torch.Tensor:
    """Every row by itself: kept inputs, and rows of sqrt(ridge) below them, in float64."""
    strength = ridge * inputs.square().sum(0).mean()
    change = torch.zeros(NUM_OUTPUTS, NUM_INPUTS, dtype=torch.float64)
    for row in range(NUM_OUTPUTS):
        own = kept[row].nonzero()[:, 0]
        ridge_rows = strength.sqrt() * torch.eye(len(own), dtype=torch.float64)
        system = torch.cat([inputs[:, own], ridge_rows])
        wanted = torch.cat([missing[:, row], torch.zeros(len(own), dtype=torch.float64)])
        change[row, own] = torch.linalg.lstsq(system, wanted[:, None], driver="gelsd").solution[:, 0]
    return change


def two_of_four() -> torch.Tensor:
    scores = torch.rand(NUM_OUTPUTS, NUM_INPUTS // 4, 4, generator=torch.Generator().manual_seed(1))
    kept = scores.argsort(-1) < 2
    return kept.flatten(1)


def uneven() -> torch.Tensor:
    kept = torch.rand(NUM_OUTPUTS, NUM_INPUTS, generator=torch.Generator().manual_seed(2)) < 0.6
    kept[3] = False
    return kept


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("mask", [None, two_of_four(), uneven()], ids=["dense", "2:4", "uneven"])
def test_the_solution_is_the_references(mask: torch.Tensor | None, ridge: float) -> None:
    inputs, missing = tokens()
    kept = torch.ones(NUM_OUTPUTS, NUM_INPUTS, dtype=torch.bool) if mask is None else mask
    sums = sums_of(inputs, missing, parts=4)
    change = solve(sums.gram, sums.cross, ridge, mask)
    expected = reference(inputs, missing, ridge, kept)
    assert (change - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert not change[~kept].any()


def test_the_error_after_a_change_is_that_of_the_tokens() -> None:
    fitted, held_out = tokens(), tokens(seed=5)
    sums = sums_of(*fitted)
    change = solve(sums.gram, sums.cross, 0.1)
    inputs, missing = held_out
    expected = (missing - inputs @ change.T).square().sum().item()
    assert sums_of(*held_out).error_after(change) == pytest.approx(expected, rel=1e-4)
    found = sums_of(*held_out).error
    assert torch.allclose(found, missing.square().sum(0), rtol=1e-5)


def test_sums_of_two_parts_are_those_of_all_tokens() -> None:
    inputs, missing = tokens()
    halves = [sums_of(x, y) for x, y in zip(inputs.chunk(2), missing.chunk(2), strict=True)]
    both, whole = halves[0] + halves[1], sums_of(inputs, missing)
    assert torch.allclose(both.gram, whole.gram, rtol=1e-5)
    assert torch.allclose(both.cross, whole.cross, rtol=1e-4, atol=1e-4)
    assert torch.allclose(both.error, whole.error)
    some = whole.of(torch.tensor([2, 5]))
    assert torch.equal(some.cross, whole.cross[[2, 5]])
    assert torch.equal(some.error, whole.error[[2, 5]])


def test_inputs_that_are_all_zero_change_nothing() -> None:
    inputs, missing = tokens()
    sums = sums_of(torch.zeros_like(inputs), missing)
    assert not solve(sums.gram, sums.cross, 0.1).any()


def test_a_ridge_below_the_rounding_is_no_solution() -> None:
    gram = torch.diag(torch.tensor([-1e-3, *[1.0] * (NUM_INPUTS - 1)]))
    cross = torch.ones(NUM_OUTPUTS, NUM_INPUTS)
    for mask in (None, torch.ones(NUM_OUTPUTS, NUM_INPUTS, dtype=torch.bool)):
        with pytest.raises(NotPositiveDefiniteError):
            solve(gram, cross, 1e-6, mask)
        assert solve(gram, cross, 0.1, mask).isfinite().all()
