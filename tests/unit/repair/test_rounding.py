"""Rounding with the error in view against enumeration and sums over tokens in float64, by plain torch."""

from __future__ import annotations

import itertools

import pytest
import torch

from compressor.repair.choice import RIDGES, Use
from compressor.repair.least_squares import Sums, solve
from compressor.repair.rounding import Rounded, on_grid, solved_on_grid

E4M3 = torch.float8_e4m3fn
RIDGE = 1e-2


def grid(amax: torch.Tensor) -> torch.Tensor:
    """Every number of the format that is finite, times the scale: float64, sorted."""
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(E4M3).float()
    return (codes[codes.isfinite()] * (amax.float() / 448)).double().unique()


def cast(weight: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    """Rounded once, by torch's own cast."""
    scale = amax.float() / 448
    return ((weight.float() / scale).clamp(-448, 448).to(E4M3).float() * scale).double()


def tokens(num_inputs: int, num_outputs: int, *, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Correlated inputs, a weight in 16 bits, and outputs that it does not quite give."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(num_inputs, num_inputs, generator=generator)
    inputs = torch.randn(400, num_inputs, generator=generator) @ mixing
    weight = torch.randn(num_outputs, num_inputs, generator=generator).bfloat16().float()
    wanted = inputs @ (weight + 0.02 * torch.randn(weight.shape, generator=generator)).T
    return inputs, weight, wanted + 0.1 * torch.randn(wanted.shape, generator=generator)


def sums_of(inputs: torch.Tensor, weight: torch.Tensor, wanted: torch.Tensor) -> Sums:
    sums = Sums.empty(inputs.shape[1], len(weight))
    sums.add(inputs, wanted - inputs @ weight.T)
    return sums


def objective(
    found: torch.Tensor, weight: torch.Tensor, inputs: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    """Squared error of every output over all tokens, and the ridge towards the weight before, `[O]`."""
    inputs, wanted, weight = inputs.double(), wanted.double(), weight.double()
    error = (wanted - inputs @ found.double().T).square().sum(dim=0)
    ridge = RIDGE * inputs.square().sum(dim=0).mean()
    return error + ridge * (found.double() - weight).square().sum(dim=1)


@pytest.mark.parametrize("num_inputs", [5, 150], ids=["one block", "two blocks"])
def test_no_other_value_of_any_weight_has_a_smaller_error(num_inputs: int) -> None:
    inputs, weight, wanted = tokens(num_inputs, 3)
    amax, sums = weight.abs().max(), sums_of(inputs, weight, wanted)
    fixed = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    start = solve(sums.gram, sums.cross, RIDGE)
    found = on_grid(weight.double(), start, sums, ridge=RIDGE, fixed=fixed, amax=amax)
    values = grid(amax)
    assert torch.isin(found, values).all()
    assert torch.equal(found[fixed], cast(weight, amax)[fixed])
    reached = objective(found, weight, inputs, wanted)
    rounded = cast(weight, amax)
    assert (reached < objective(rounded, weight, inputs, wanted)).all()
    columns = range(num_inputs) if num_inputs < 10 else (0, 64, 127, 128, 149)
    for column, value in itertools.product(columns, values):
        other = found.clone()
        other[:, column] = torch.where(fixed[:, column], other[:, column], value)
        assert (objective(other, weight, inputs, wanted) >= reached * (1 - 1e-5)).all()


def test_two_weights_reach_the_least_error_of_all_pairs() -> None:
    """On enough tokens the best pair of all of them; of correlated inputs, so that single rounding is not."""
    inputs, weight, wanted = tokens(2, 8, seed=3)
    inputs[:, 1] = 0.4 * inputs[:, 1] + 0.3 * inputs[:, 0]
    wanted = inputs @ weight.T
    amax, sums = weight.abs().max(), sums_of(inputs, weight, wanted)
    start = solve(sums.gram, sums.cross, RIDGE)
    none = torch.zeros_like(weight, dtype=torch.bool)
    found = on_grid(weight.double(), start, sums, ridge=RIDGE, fixed=none, amax=amax)
    reached, single = (objective(w, weight, inputs, wanted) for w in (found, cast(weight, amax)))
    pairs = torch.cartesian_prod(grid(amax), grid(amax))
    for output in range(len(weight)):
        rows = weight[output].expand(len(pairs), -1)
        best = objective(pairs, rows, inputs, wanted[:, output : output + 1].expand(-1, len(pairs))).min()
        assert best <= reached[output] * (1 + 1e-6)
        assert reached[output] <= single[output] * (1 + 1e-6)
    assert reached.sum() < single.sum()


def uses(*parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> dict[Use, Sums]:
    names: tuple[Use, ...] = ("fit", "choose", "accept")
    return {name: sums_of(*part) for name, part in zip(names, parts, strict=True)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_the_stored_weight_rounds_to_the_grid_it_was_judged_on(dtype: torch.dtype, is_sparse: bool) -> None:
    inputs, weight, wanted = tokens(32, 24)
    mask = None
    if is_sparse:
        mask = torch.ones_like(weight, dtype=torch.bool)
        mask[:, ::2] = False
        weight = weight * mask
    weight, shared = weight.to(dtype), 3.5 * weight.abs().max().to(dtype).float()
    thirds = [(inputs[start::3], weight.float(), wanted[start::3]) for start in range(3)]
    now = Rounded(weight=weight, amax=weight.abs().max().float())
    for amax in (now.amax, shared):
        made, found = solved_on_grid(now, uses(*thirds), mask, amax=amax, dtype=dtype)
        assert found.accepted
        assert found.ridge in RIDGES
        assert made.weight.dtype == dtype
        assert torch.equal(made.acting.double(), cast(made.weight, amax))
        assert (made.weight.abs().max().float() == amax) == (amax == now.amax)
        if mask is not None:
            assert not made.weight[~mask].any()
        errors = [
            (thirds[2][2].double() - thirds[2][0].double() @ cast(own.weight, own.amax).T).square().sum()
            for own in (made, now)
        ]
        assert found.error_ratio == pytest.approx((errors[0] / errors[1]).item(), rel=1e-3)


def test_a_weight_that_is_best_as_it_is_rounded_is_left() -> None:
    """Uncorrelated inputs and nothing amiss: on held-out tokens nothing beats the nearest values by much."""
    inputs, weight, wanted = tokens(16, 8)
    amax = weight.abs().max()
    wanted = inputs @ cast(weight, amax).float().T
    thirds = [(inputs[start::3], weight, wanted[start::3]) for start in range(3)]
    now = Rounded(weight=weight, amax=amax)
    _, found = solved_on_grid(now, uses(*thirds), None, amax=amax, dtype=torch.float32)
    assert not found.accepted
