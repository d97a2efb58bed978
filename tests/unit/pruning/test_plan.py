"""The prune plan: choices by score, contiguous depth, ranges a person can read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.core.errors import UsageError
from compressor.models.dims import dims_of_config
from compressor.pruning.importance import random_importance
from compressor.pruning.plan import (
    best,
    best_heads,
    format_ranges,
    kept_layers,
    make_plan,
    parse_ranges,
    read_plan,
)


@given(st.sets(st.integers(0, 200)))
def test_ranges_round_trip(indices: set[int]) -> None:
    ascending = tuple(sorted(indices))
    assert parse_ranges(format_ranges(ascending)) == ascending


def test_ranges_are_short() -> None:
    assert format_ranges([0, 1, 2, 5, 7, 8]) == "0-2 5 7-8"


def test_best_takes_the_highest_and_breaks_ties_downwards() -> None:
    assert best(torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0]), 3) == (1, 2, 3)


def test_heads_are_chosen_inside_their_groups() -> None:
    scores = torch.tensor([9.0, 8.0, 7.0, 1.0, 2.0, 3.0])
    assert best_heads(scores, 4, num_key_value_heads=2) == (0, 1, 4, 5)


def test_the_least_important_contiguous_block_goes() -> None:
    blocks = torch.full((6, 6), 9.0)
    blocks[2, 4] = 1.0
    blocks[0, 1] = 0.0
    assert kept_layers(blocks, 2) == (0, 1, 4)
    assert kept_layers(blocks, 1) == (1, 2, 3, 4)
    assert kept_layers(blocks, 0) == (0, 1, 2, 3, 4)


def test_plan_round_trips_through_json(tmp_path: Path) -> None:
    dims = dims_of_config(
        {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 331,
        }
    )
    student = dims.with_shape(hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    plan = make_plan(dims, student, random_importance(dims, seed=0), importance="random")
    plan.write(tmp_path)
    assert read_plan(tmp_path) == plan
    assert len(plan.hidden) == 32
    assert [len(kept) for kept in plan.intermediate] == [64, 64]


def test_a_malformed_plan_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "prune_plan.json").write_text('{"layers": "0-x"}', encoding="utf-8")
    with pytest.raises(UsageError, match="plan cannot be read"):
        read_plan(tmp_path)
