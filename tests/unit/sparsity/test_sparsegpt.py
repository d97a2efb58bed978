"""SparseGPT against brute force on four columns, and against a column-by-column float64 reference."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

from compressor.calibration.sequential import Gram
from compressor.models.sparse.masks import keep_mask
from compressor.models.sparse.pattern import Pattern
from compressor.repair.least_squares import NotPositiveDefiniteError
from compressor.sparsity.method import Choice, OneShotSettings
from compressor.sparsity.scores import input_norms, wanda_scores
from compressor.sparsity.sparsegpt import sparsegpt

TOKENS = 64


def pruned(weight: torch.Tensor, gram: torch.Tensor, *, num_tokens: int = TOKENS, **settings: Any) -> Choice:
    return sparsegpt(weight, Gram(total=gram, num_tokens=num_tokens), OneShotSettings(**settings))


def correlated(columns: int, *, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    mixing = torch.eye(columns, dtype=dtype) + 0.5 * torch.randn(columns, columns, dtype=dtype)
    return torch.randn(TOKENS, columns, dtype=dtype) @ mixing


def reference(weight: torch.Tensor, hessian: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """The same problem by its definition: after each column, the columns to its right solve a least
    squares problem with everything to its left fixed. No Cholesky factor, no blocks."""
    size, group_size = weight.shape[1], pattern.group_size
    result = weight.clone()
    kept = torch.zeros_like(weight, dtype=torch.bool)
    for j in range(size):
        if j % group_size == 0:
            # U_jj^2 is the first diagonal entry of the inverse of H restricted to the columns from j on.
            diagonal = torch.stack(
                [torch.linalg.inv(hessian[k:, k:])[0, 0] for k in range(j, j + group_size)]
            )
            kept[:, j : j + group_size] = keep_mask(
                result[:, j : j + group_size].square() / diagonal, pattern
            )
        error = result[:, j].masked_fill(kept[:, j], 0)
        result[:, j] -= error
        if j + 1 < size:
            # Minimise the error over the rest: delta = error H_rest^-1 H_rest,j.
            rest = torch.linalg.solve(hessian[j + 1 :, j + 1 :], hessian[j + 1 :, j])
            result[:, j + 1 :] += error[:, None] * rest
    return result


@pytest.mark.parametrize(("columns", "block_size"), [(24, 4), (24, 8), (140, 128)])
@pytest.mark.parametrize("dead", [(), (3, 4, 6, 7, 9)])
def test_equals_a_float64_reference(columns: int, block_size: int, dead: tuple[int, ...]) -> None:
    weight, inputs = torch.randn(9, columns).double(), correlated(columns)
    inputs[:, dead] = 0
    gram = inputs.T @ inputs
    result = pruned(weight, gram, block_size=block_size)
    hessian = gram * (2 / TOKENS)
    mean = hessian.diagonal().mean()
    hessian[dead, dead], weight[:, dead] = 1, 0
    hessian += 0.01 * mean * torch.eye(columns).double()
    torch.testing.assert_close(result.weight, reference(weight, hessian, Pattern()), rtol=1e-9, atol=1e-9)


def test_equals_brute_force_on_four_columns() -> None:
    """On one group the mask is the cheapest by the method's cost, of all six, and each kept column has
    the value that all updates by earlier columns leave."""
    weight, inputs = torch.randn(5, 4).double(), correlated(4)
    gram = inputs.T @ inputs
    result = pruned(weight, gram, dampening_fraction=0.0)
    upper = torch.linalg.cholesky(torch.linalg.inv(gram * (2 / TOKENS)), upper=True)
    for row in range(5):
        costs = {
            dropped: sum((weight[row, j] / upper[j, j]).item() ** 2 for j in dropped)
            for dropped in combinations(range(4), 2)
        }
        cheapest = min(costs, key=lambda dropped: costs[dropped])
        assert (~result.keep_mask[row]).nonzero().flatten().tolist() == list(cheapest)
        values = weight[row].clone()
        for j in range(4):
            if j in cheapest:
                values[j:] -= values[j] / upper[j, j] * upper[j, j:].clone()
        values[list(cheapest)] = 0
        torch.testing.assert_close(result.weight[row], values, rtol=1e-9, atol=1e-9)


def output_error(weight: torch.Tensor, changed: torch.Tensor, inputs: torch.Tensor) -> float:
    return float(((weight - changed) @ inputs.T).square().sum() / (weight @ inputs.T).square().sum())


def test_update_repairs_and_beats_other_masks() -> None:
    weight, inputs = torch.randn(48, 64), correlated(64, dtype=torch.float32)
    gram = inputs.T @ inputs
    result = pruned(weight, gram)
    wanda = weight * keep_mask(wanda_scores(weight, input_norms(Gram(total=gram, num_tokens=TOKENS))))
    magnitude = weight * keep_mask(weight.abs())
    ours = output_error(weight, result.weight, inputs)
    assert ours < output_error(weight, weight * result.keep_mask, inputs)
    assert ours < output_error(weight, wanda, inputs) < output_error(weight, magnitude, inputs)


def test_dead_inputs_lose_their_weights_and_nothing_else() -> None:
    weight, inputs = torch.randn(6, 16).double(), correlated(16)
    inputs[:, [3, 9]] = 0
    result = pruned(weight, inputs.T @ inputs)
    assert torch.isfinite(result.weight).all()
    assert result.weight[:, [3, 9]].abs().max() == 0


def test_the_source_is_not_changed_and_the_pattern_is_exact() -> None:
    weight, inputs = torch.randn(6, 32), correlated(32, dtype=torch.float32)
    before = weight.clone()
    result = pruned(weight, inputs.T @ inputs, pattern=Pattern(4, 8))
    assert torch.equal(weight, before)
    assert torch.equal(result.keep_mask.unflatten(-1, (-1, 8)).sum(-1), torch.full((6, 4), 4))


def test_an_indefinite_hessian_raises_or_raises_its_dampening() -> None:
    weight, gram = torch.randn(4, 8).double(), torch.eye(8).double()
    gram[0, 0] = -0.05
    with pytest.raises(NotPositiveDefiniteError, match=r"dampening of 0\.01"):
        pruned(weight, gram, num_tokens=1)
    result = pruned(weight, gram, num_tokens=1, raise_dampening=True)
    assert result.dampening_fraction == pytest.approx(0.1)


@pytest.mark.parametrize("fraction", [0.01, 5.0])
def test_dampening_is_raised_only_so_far(fraction: float) -> None:
    weight, gram = torch.randn(4, 8).double(), -torch.eye(8).double()
    with pytest.raises(NotPositiveDefiniteError, match=r"dampening of 10$"):
        pruned(weight, gram, num_tokens=1, dampening_fraction=fraction, raise_dampening=True)


def test_blocks_that_split_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="split groups"):
        pruned(torch.randn(4, 8), torch.eye(8), num_tokens=1, block_size=6)
