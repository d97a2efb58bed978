"""The shapes between a model and its student, and what contradicts several cuts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from compressor.core.errors import UsageError
from compressor.models.dims import Dims, check_shape, num_parameters
from compressor.models.presets import PRESETS
from compressor.pipeline.consistency import require_consistent
from compressor.pipeline.family import plan_family
from compressor.planning.cuts import shapes_between
from compressor.planning.depth import of_cut, require_depth
from compressor.planning.plan import Plan, make_plan
from compressor.planning.search_space import Deployment
from compressor.recipe.recipe import Recipe, load_recipe

LLAMA, SMOLLM = PRESETS["llama3.1-8b"].dims, PRESETS["smollm2-135m"].dims
FIELDS = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")


def recipe(**given: Any) -> Recipe:
    usual = {"model": "llama3.1-8b", "target": "4b-width", "interleave.cuts": 4}
    return load_recipe(None, {**usual, **{name.replace("__", "."): value for name, value in given.items()}})


def plan(**given: Any) -> Plan:
    return make_plan(recipe(**given), LLAMA)


def sizes(shape: Dims) -> tuple[int, ...]:
    return tuple(getattr(shape, name) for name in FIELDS)


STUDENTS = {
    "width": (LLAMA, PRESETS["4b-width"].dims),
    "depth": (LLAMA, PRESETS["4b-depth"].dims),
    "heads": (LLAMA, LLAMA.with_shape(num_attention_heads=16, num_hidden_layers=24)),
    "groups": (LLAMA, LLAMA.with_shape(num_attention_heads=8, num_key_value_heads=4, num_hidden_layers=20)),
    "small": (SMOLLM, SMOLLM.with_shape(hidden_size=432, intermediate_size=1024, num_hidden_layers=24)),
}


@pytest.mark.parametrize("number", [2, 3, 5])
@pytest.mark.parametrize("name", STUDENTS)
def test_no_dimension_grows_and_every_shape_can_be_deployed(name: str, number: int) -> None:
    teacher, student = STUDENTS[name]
    shapes = shapes_between(teacher, student, number, Deployment(tp_size=2 if teacher is LLAMA else 1))
    assert len(shapes) == number
    assert shapes[-1] == student
    for before, after in pairwise((teacher, *shapes)):
        check_shape(after)  # as the model class demands
        for field in (*FIELDS, "num_key_value_heads"):
            assert getattr(after, field) <= getattr(before, field)
        # A key/value head goes with all of its query heads.
        assert after.num_attention_heads * before.num_key_value_heads <= (
            before.num_attention_heads * after.num_key_value_heads
        )
    for shape in shapes[:-1]:
        assert shape.intermediate_size % 64 == 0
        assert shape.hidden_size % (64 if shape.hidden_size >= 2048 else 16) == 0
        assert teacher is SMOLLM or shape.num_attention_heads % 2 == 0


def test_every_cut_keeps_about_the_same_share() -> None:
    """Layers 32 to 16 in four cuts: by hand 26.9, 22.6 and 19.0."""
    depth = shapes_between(LLAMA, PRESETS["4b-depth"].dims, 4, Deployment())
    assert [shape.num_hidden_layers for shape in depth] == [27, 23, 19, 16]
    width = shapes_between(LLAMA, PRESETS["4b-width"].dims, 2, Deployment())
    # The geometric means of 14336 and 9216, and of 4096 and 3072, on multiples of 64: 11494.6, 3547.2.
    assert sizes(width[0]) == (32, 3520, 11520, 32)


def test_the_plan_states_shapes_tokens_hours_and_disk() -> None:
    made, at_once = plan(distill__tokens=4_000_000), plan(distill__tokens=4_000_000, interleave__cuts=1)
    assert [cut.tokens for cut in made.cuts] == [1_000_000] * 4
    assert [cut.num_parameters for cut in made.cuts] == [num_parameters(cut.shape) for cut in made.cuts]
    assert made.cuts[-1].shape == made.student.dims == at_once.student.dims
    assert at_once.cuts == ()
    trainings = [f"cut-{number}-distill" for number in (1, 2, 3)] + ["distill"]
    assert [phase.name for phase in made.training.phases] == trainings  # type: ignore[union-attr]
    assert {*trainings, "calibration", "reconstruct"} == set(made.hours.stages)
    # Larger students train longer, four models are scored and repaired.
    assert sum(made.hours.stages[name] for name in trainings) > at_once.hours.stages["distill"]
    assert made.hours.stages["reconstruct"] > at_once.hours.stages["reconstruct"]
    assert made.hours.stages["calibration"] > at_once.hours.stages["calibration"]
    places = [use.where for use in made.disk if use.stage == "interleave"]
    assert places[:3] == [f"stages/cut-1-{stage}" for stage in ("prune", "reconstruct", "distill")]
    assert len(places) == 9
    assert made.memory_bytes["interleave"] > made.memory_bytes["distill"]


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "--hidden-removal rotation": {"prune__hidden": "rotation"},
    "--teacher-correction alongside": {"distill__correction": {"mode": "alongside"}},
    "--importance learned-masks": {"prune__importance": "learned-masks"},
    "16383": {"distill__tokens": 4 * 4096 - 1},
    "0": {"distill__tokens": 0},
}


@pytest.mark.parametrize("found", CONTRADICTIONS)
def test_contradictions_are_refused(found: str) -> None:
    with pytest.raises(UsageError) as refused:
        require_consistent(recipe(**CONTRADICTIONS[found]))
    assert found in str(refused.value.found)
    require_consistent(recipe(**{**CONTRADICTIONS[found], "interleave__cuts": 1}))


def test_saved_scores_are_refused(tmp_path: Any) -> None:
    (tmp_path / "importance.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="contradicts several cuts") as refused:
        require_consistent(recipe(prune__scores=str(tmp_path)))
    assert "--scores" in str(refused.value.found)


def test_more_cuts_than_shapes_are_refused() -> None:
    near = {"target": None, "prune.shape": {"num_hidden_layers": 30}}
    assert len(make_plan(recipe(**near, interleave__cuts=2), LLAMA).cuts) == 2
    with pytest.raises(UsageError, match="not so many shapes") as refused:
        make_plan(recipe(**near, interleave__cuts=3), LLAMA)
    assert "at most 2" in str(refused.value.expected)


def test_a_cut_that_keeps_all_layers_measures_none_of_them() -> None:
    by_loss = {"prune.depth_importance": "loss", "prune.depth_curve": [1, 2]}
    assert len(make_plan(recipe(**by_loss, target="4b-depth"), LLAMA).cuts) == 4
    shape = {"num_hidden_layers": 28, "intermediate_size": 768}
    few = recipe(model="smollm2-135m", target=None, **{"prune.shape": shape}, **by_loss)
    steps = [SMOLLM, *(cut.shape for cut in make_plan(few, SMOLLM).cuts)]
    assert [step.num_hidden_layers for step in steps] == [30, 29, 29, 28, 28]
    settings = [of_cut(few.prune, *step) for step in pairwise(steps)]
    assert [prune.measures_depth for prune in settings] == [True, False, True, False]
    for prune, step in zip(settings, pairwise(steps), strict=True):
        require_depth(prune, *step)
    with pytest.raises(UsageError, match="keeps every layer"):
        make_plan(recipe(**by_loss), LLAMA)


def test_layers_that_a_publication_names_go_in_one_cut() -> None:
    with pytest.raises(UsageError, match="names the layers"):
        plan(target="4b-depth")
    assert plan(target="4b-depth", interleave__cuts=1).cuts == ()
    assert len(plan(target="4b-depth", prune__depth="scattered").cuts) == 4


def test_every_member_of_a_family_is_cut_as_often() -> None:
    family = plan_family(recipe(target="6b,4b"), LLAMA)
    assert [len(member.plan.cuts) for member in family.members] == [4, 4]
    assert family.members[1].plan.teacher.dims == family.members[0].plan.cuts[-1].shape
