"""The prune plan: choices by score, contiguous depth, ranges a person can read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.core.errors import UsageError
from compressor.models.dims import dims_of_config
from compressor.models.presets import PRESETS
from compressor.planning.depth import published_layers
from compressor.pruning.importance import random_importance
from compressor.pruning.plan import (
    PLAN_FILE,
    PrunePlan,
    best,
    format_ranges,
    kept_layers,
    make_plan,
    parse_ranges,
    read_plan,
)
from compressor.recipe.recipe import Prune
from tests.unit.models.config.published import TINY


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
    assert best(scores, 4, num_groups=2) == (0, 1, 4, 5)


def test_the_least_important_contiguous_block_goes() -> None:
    blocks = torch.full((6, 6), 9.0)
    blocks[2, 4] = 1.0
    blocks[0, 1] = 0.0
    assert kept_layers(blocks, 2) == (0, 1, 4)
    assert kept_layers(blocks, 1) == (1, 2, 3, 4)
    assert kept_layers(blocks, 0) == (0, 1, 2, 3, 4)


def test_scattered_layers_are_the_least_important_ones_alone() -> None:
    dims = dims_of_config({**TINY, "num_hidden_layers": 5})
    scores = random_importance(dims, seed=0)
    blocks = torch.full((6, 6), 9.0)
    for layer, score in enumerate((0.5, 0.1, 0.7, 0.2, 0.6)):
        blocks[layer, layer + 1] = score
    scores = replace(scores, blocks=blocks)
    student = dims.with_shape(num_hidden_layers=3)
    plan = make_plan(dims, student, scores, importance="random", depth="scattered")
    assert plan.layers == (0, 2, 4)


def test_the_published_depth_model_loses_the_published_layers() -> None:
    teacher, student = PRESETS["llama3.1-8b"].dims, PRESETS["4b-depth"].dims
    removed = published_layers(Prune(), teacher, student)
    scores = random_importance(teacher, seed=0)
    plan = make_plan(teacher, student, scores, importance="random", removed_layers=removed)
    assert plan.layers == (*range(15), 31)
    assert published_layers(Prune(), teacher, PRESETS["4b-width"].dims) == ()
    assert published_layers(Prune(), teacher.with_shape(num_hidden_layers=24), student) == ()


def test_the_groups_with_the_highest_sums_stay_with_heads_of_their_own() -> None:
    shape = {"num_attention_heads": 6, "num_key_value_heads": 3, "num_hidden_layers": 2}
    dims = dims_of_config({**TINY, **shape})
    scores = random_importance(dims, seed=0)
    heads = torch.tensor([[9.0, 0.0, 4.0, 4.0, 1.0, 9.5], [1.0, 2.0, 3.0, 4.0, 5.0, 0.0]])
    scores = replace(scores, units={**scores.units, "heads": heads})
    whole = dims.with_shape(num_attention_heads=4, num_key_value_heads=2)
    plan = make_plan(dims, whole, scores, importance="random")
    # Sums: 9, 8, 10.5 in the first layer; 3, 7, 5 in the second.
    assert plan.kept["kv_heads"] == ((0, 2), (1, 2))
    assert plan.kept["heads"] == ((0, 1, 4, 5), (2, 3, 4, 5))
    assert plan.student == whole
    single = dims.with_shape(num_attention_heads=2, num_key_value_heads=2)
    fewer = make_plan(dims, single, scores, importance="random")
    assert fewer.kept["heads"] == ((0, 5), (3, 4))
    assert fewer.units("kv_heads", 1) == (1, 2)


def test_a_plan_that_keeps_every_group_does_not_list_them(plan: PrunePlan) -> None:
    assert set(plan.kept) == {"hidden", "intermediate", "heads"}
    assert plan.units("kv_heads", 0) is None


@pytest.fixture
def plan() -> PrunePlan:
    dims = dims_of_config(TINY)
    student = dims.with_shape(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    plan = make_plan(dims, student, random_importance(dims, seed=0), importance="random")
    assert plan.student == student
    return plan


def test_plan_round_trips_through_json(plan: PrunePlan, tmp_path: Path) -> None:
    plan.write(tmp_path)
    assert read_plan(tmp_path / PLAN_FILE) == plan


def change(**kept: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["kept"].update(kept)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no range": (lambda document: document.update(layers="0-x"), "layers"),
    "a range of billions": (change(hidden=["0-99999999999"]), "above every model"),
    "beyond the source": (change(hidden=["0-30 64"]), "kept.hidden: expected ascending indices from 0 to 63"),
    "twice the same": (change(hidden=["0-30 30"]), "kept.hidden: expected ascending indices"),
    "nothing": (change(hidden=[""]), "kept.hidden"),
    "an axis less": (lambda document: document["kept"].pop("heads"), "expected the axes"),
    "a layer less": (change(heads=["0 2"]), "one list per kept layer"),
    "uneven layers": (change(intermediate=["0-63", "0-62"]), "equally many"),
    "heads of one group": (change(heads=["0-1", "0-1"]), "of every 2 units"),
    "heads of a group that goes": (change(heads=["0-1", "2-3"], kv_heads=["0", "0"]), "of every 2 units"),
    "groups without heads": (change(heads=["0-1", "0-1"], kv_heads=["0-1", "0-1"]), "of every 2 units"),
    "uneven groups": (change(heads=["0-1", "0-3"], kv_heads=["0", "0-1"]), "equally many"),
    "no such group": (change(heads=["0-1", "0-1"], kv_heads=["0", "2"]), "from 0 to 1"),
    "groups of a layer less": (change(kv_heads=["0-1"]), "one list per kept layer"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_plan_that_contradicts_itself_is_refused(name: str, plan: PrunePlan, tmp_path: Path) -> None:
    edit, message = EDITS[name]
    plan.write(tmp_path)
    document = json.loads((tmp_path / PLAN_FILE).read_text())
    edit(document)
    (tmp_path / PLAN_FILE).write_text(json.dumps(document))
    with pytest.raises(UsageError, match=message):
        read_plan(tmp_path / PLAN_FILE)
