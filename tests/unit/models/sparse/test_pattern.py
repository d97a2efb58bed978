"""Masks against every choice there is, packing, and checks that name what is wrong."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.core.errors import UnsupportedError, UsageError, VerificationError
from compressor.models.sparse.masks import check_pattern, keep_mask, max_nonzeros, pack_mask, unpack_mask
from compressor.models.sparse.pattern import Pattern, parse_pattern


@pytest.mark.parametrize(("kept", "size"), [(2, 4), (1, 4), (3, 4), (4, 8), (1, 2)])
def test_kept_scores_are_the_largest_sum_of_any_choice(kept: int, size: int) -> None:
    scores = torch.randint(0, 5, (6, 3 * size)).double()  # ties on purpose
    mask = keep_mask(scores, Pattern(kept, size))
    for row in range(6):
        for start in range(0, 3 * size, size):
            group = scores[row, start : start + size].tolist()
            chosen = tuple(mask[row, start : start + size].nonzero().flatten().tolist())
            # combinations come in lexicographic order, and max takes the first: the leftmost choice.
            assert chosen == max(combinations(range(size), kept), key=lambda c: sum(group[i] for i in c))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_ties_keep_the_left(values: list[int]) -> None:
    ranked = sorted(range(4), key=lambda index: (-values[index], index))
    assert keep_mask(torch.tensor([values]).float()).nonzero()[:, 1].tolist() == sorted(ranked[:2])


@pytest.mark.parametrize("columns", [4, 8, 12, 36])
def test_packing_round_trips(columns: int) -> None:
    mask = torch.rand(5, columns) > 0.5
    packed = pack_mask(mask)
    assert (packed.dtype, packed.shape) == (torch.uint8, (5, -(-columns // 8)))
    assert torch.equal(unpack_mask(packed, columns), mask)


def test_a_third_nonzero_is_named() -> None:
    weight = torch.randn(3, 8)
    weight = weight * keep_mask(weight.abs())
    check_pattern("w", weight, Pattern())
    weight[1, 4:] = torch.tensor([1.0, 0.0, 2.0, 3.0])
    with pytest.raises(VerificationError, match=r"w\[1, 4:8\]"):
        check_pattern("w", weight, Pattern())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.int8, torch.uint8])
def test_stored_dtypes_are_counted_by_value(dtype: torch.dtype) -> None:
    weight = torch.tensor([[1.0, 0.0, 2.0, 0.0, 3.0, 1.0, 2.0, 0.0]])
    assert max_nonzeros(weight.to(dtype), 4) == 3
    if dtype.is_floating_point:
        assert max_nonzeros((-0.0 * weight).to(dtype), 4) == 0


def test_columns_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="multiple of 4"):
        check_pattern("w", torch.zeros(2, 6), Pattern())


@pytest.mark.parametrize("text", ["4:2", "2", "0:4", "2:4:8", "a:b", "4:4"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a sparsity pattern"):
        parse_pattern(text)


def test_a_pattern_reads_as_it_is_written() -> None:
    assert str(parse_pattern("2:4")) == "2:4"
    assert parse_pattern("4:8").density == 0.5
