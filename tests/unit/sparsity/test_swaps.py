"""Swaps against brute force over every mask of a small matrix, and against the error of the outputs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from compressor.models.sparse.masks import keep_mask
from compressor.models.sparse.pattern import TWO_OF_FOUR, Pattern, parse_pattern
from compressor.sparsity.method import Choice
from compressor.sparsity.swaps import refine_mask, refined

ROWS, TOKENS = 6, 64


def matrices(columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and inputs whose channels depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    inputs = torch.randn(TOKENS, columns, generator=generator) @ mixing
    return torch.randn(ROWS, columns, generator=generator), inputs


def errors(weight: torch.Tensor, inputs: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Squared error of every output, from the outputs themselves, in float64."""
    lost = weight.masked_fill(kept, 0).double()
    return (inputs.double() @ lost.T).square().sum(0)


@pytest.mark.parametrize("pattern", [TWO_OF_FOUR, parse_pattern("1:4"), parse_pattern("4:8")], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_one_group_ends_where_no_exchange_helps(pattern: Pattern, seed: int) -> None:
    weight, inputs = matrices(pattern.group_size, seed)
    start = keep_mask(weight.abs(), pattern)
    refined = refine_mask(weight, inputs.T @ inputs, start, pattern, sweeps=50)
    found = errors(weight, inputs, refined)
    for row in range(ROWS):
        kept = refined[row].nonzero()[:, 0].tolist()
        dropped = (~refined[row]).nonzero()[:, 0].tolist()
        for out, back in itertools.product(kept, dropped):
            other = refined.clone()
            other[row, out], other[row, back] = False, True
            assert errors(weight, inputs, other)[row] >= found[row] * (1 - 1e-5)


def test_many_groups_never_get_worse_and_keep_the_pattern() -> None:
    weight, inputs = matrices(64, 3)
    kept, gram = keep_mask(weight.abs(), TWO_OF_FOUR), inputs.T @ inputs
    before = errors(weight, inputs, kept)
    for sweeps in (1, 2, 20):
        refined = refine_mask(weight, gram, kept, TWO_OF_FOUR, sweeps=sweeps)
        after = errors(weight, inputs, refined)
        assert (after <= before * (1 + 1e-5)).all()
        assert (refined.unflatten(1, (-1, 4)).sum(-1) == 2).all()
    assert after.sum() < 0.8 * before.sum()


def test_new_values_are_the_best_for_the_new_mask() -> None:
    """Against float64 least squares of every row on its kept inputs, from the tokens themselves."""
    weight, inputs = matrices(16, 5)
    gram = inputs.T @ inputs
    given = Choice(keep_mask=keep_mask(weight.abs(), TWO_OF_FOUR), weight=weight, dampening_fraction=0.01)
    found = refined(given, weight, gram, TWO_OF_FOUR, sweeps=20)
    assert found.weight is not None
    strength = (0.01 * gram.diagonal().mean()).double().sqrt()
    for row in range(ROWS):
        own = found.keep_mask[row].nonzero()[:, 0]
        lost = weight[row].masked_fill(found.keep_mask[row], 0)
        system = torch.cat([inputs[:, own].double(), strength * torch.eye(len(own))])
        wanted = torch.cat([inputs.double() @ lost.double(), torch.zeros(len(own))])
        change = torch.linalg.lstsq(system, wanted[:, None]).solution[:, 0]
        assert torch.allclose(found.weight[row, own].double(), weight[row, own] + change, atol=1e-3)
        assert not found.weight[row][~found.keep_mask[row]].any()
    unchanged = refined(replace(given, weight=None), weight, gram, TWO_OF_FOUR, sweeps=20)
    assert unchanged.weight is None
    assert torch.equal(unchanged.keep_mask, found.keep_mask)


def test_no_sweep_changes_nothing() -> None:
    weight, inputs = matrices(16, 0)
    start = keep_mask(weight.abs(), TWO_OF_FOUR)
    assert torch.equal(refine_mask(weight, inputs.T @ inputs, start, TWO_OF_FOUR, sweeps=0), start)
