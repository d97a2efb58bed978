from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.report.results import CellResult, ComparisonResult, Interval, Results
from compressor.core.console import Console
from compressor.core.errors import UsageError
from compressor.models.dims import num_parameters
from compressor.models.presets import PRESETS
from compressor.models.source import ModelSource
from compressor.pipeline import pipeline
from compressor.pipeline.family import FamilyPlan, plan_family, run_family, split_targets
from compressor.pipeline.promise import require_one_size
from compressor.pipeline.running import Start
from compressor.planning.plan import make_plan
from compressor.recipe.recipe import Recipe, load_recipe
from tests.unit.bench.results_by_hand import results_of
from tests.unit.pipeline.summaries import evaluation, make_summary

LLAMA = PRESETS["llama3.1-8b"].dims
SOURCE = ModelSource(given="m", kind="directory", location="m")


def recipe(target: str, **overrides: Any) -> Recipe:
    return load_recipe(None, {"model": "llama3.1-8b", "target": target, **overrides})


def planned(out_dir: Path) -> FamilyPlan:
    return plan_family(recipe("6b,4b"), LLAMA, out_dir=str(out_dir))


@pytest.mark.parametrize(
    ("target", "parts"), [("8b,4b", ("8b", "4b")), (" 60% , 4b", ("60%", "4b")), ("4b", ("4b",)), (None, ())]
)
def test_targets_are_split_on_commas(target: str | None, parts: tuple[str, ...]) -> None:
    assert split_targets(target) == parts


@pytest.mark.parametrize("target", ["4b,", ",4b", "8b,,4b", ","])
def test_an_empty_target_is_refused(target: str) -> None:
    with pytest.raises(UsageError, match="a target is empty"):
        split_targets(target)


def test_each_member_starts_from_the_student_before_it() -> None:
    family = plan_family(recipe("6b,4b"), LLAMA, out_dir="out")
    first, second = family.members

    assert (first.recipe.model, second.recipe.model) == ("llama3.1-8b", "out/6b/student")
    assert second.plan.teacher.dims == first.plan.student.dims
    assert [member.name for member in family.members] == ["6b", "4b"]


def test_a_published_size_of_the_original_means_its_published_shape() -> None:
    second = plan_family(recipe("7.8b,4b"), LLAMA).members[1]

    assert second.plan.student.dims == PRESETS["4b-width"].dims
    assert make_plan(second.recipe, second.plan.teacher.dims).student == second.plan.student
    require_one_size(second.recipe)  # as the command with the member's own recipe does


def test_a_published_shape_that_cannot_be_cut_out_gives_way_to_the_size() -> None:
    second = plan_family(recipe("4b-depth,2b"), LLAMA).members[1]
    assert second.plan.published_shape is None
    assert num_parameters(second.plan.student.dims) == pytest.approx(2e9, rel=0.02)
    sheared = PRESETS["llama2-7b"].dims
    later = plan_family(recipe("5b,2.7b"), sheared).members[1]
    assert later.plan.published_shape is None
    assert num_parameters(later.plan.student.dims) == pytest.approx(2.7e9, rel=0.02)


def test_percentages_are_of_the_original() -> None:
    members = plan_family(recipe("75%,50%"), LLAMA).members

    assert [member.name for member in members] == ["75pct", "50pct"]
    assert num_parameters(members[1].plan.student.dims) == pytest.approx(4.015e9, rel=0.02)
    assert members[1].recipe.target == str(num_parameters(LLAMA) // 2)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("4b,6b", "not smaller than the model before it"),
        ("6b,6B", "not smaller than the model before it"),
        ("4b,4b-width", "not smaller than the model before it"),
        ("4b,two", "neither a size nor a published shape"),
        ("6b,9b", "not smaller than the model before it"),
    ],
)
def test_targets_must_shrink_strictly(target: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_family(recipe(target), LLAMA)


@pytest.mark.parametrize(
    "setting",
    [
        {"prune.shape": {"hidden_size": 3072}},
        {"prune.scores": "pruned"},
        {"distill.teacher_logits": "logits"},
    ],
)
def test_settings_of_one_model_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="belongs to one model"):
        plan_family(recipe("6b,4b", **setting), LLAMA)


def test_a_sparse_family_goes_on_from_the_dense_model() -> None:
    second = plan_family(recipe("6b,4b", **{"sparsify.pattern": "2:4"}), LLAMA, out_dir="out").members[1]
    assert second.recipe.model == "out/6b/stages/distill"
    untrained = {"sparsify.pattern": "2:4", "distill.tokens": 0}
    for more, stage in (({"repair.method": "off"}, "prune"), ({}, "reconstruct")):
        chosen = recipe("6b,4b", **untrained, **more)
        member = plan_family(chosen, LLAMA, out_dir="out").members[1]
        assert member.recipe.model == f"out/6b/stages/{stage}"


def test_the_sum_is_over_all_members() -> None:
    family = plan_family(recipe("6b,4b"), LLAMA)
    plans = [member.plan for member in family.members]

    assert family.total.gpu_hours == pytest.approx(sum(plan.hours.gpu_hours for plan in plans))
    assert family.total.disk_bytes == sum(plan.disk_bytes for plan in plans)
    stages = [plan.hours.stages for plan in plans]
    expected = sum(sum(hours.values()) for hours in stages)
    assert family.total.hours == pytest.approx(expected, abs=1e-3)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A pipeline that only records how it was called; the second call fails once asked to."""
    made: list[dict[str, Any]] = []

    def stand_in(
        _recipe: Recipe, source: ModelSource, plan: Any, out_dir: Path, _: Any, start: Start, **_named: Any
    ) -> Any:
        made.append({"source": source, "out_dir": out_dir, "restart_from": start.restart_from})
        (out_dir / "student").mkdir(parents=True, exist_ok=True)
        losses = {"teacher": 1.0, "pruned": 1.5 + len(made), "quantized": 9.0}
        return make_summary(plan, evaluation(**losses), bench=bench_by_hand())

    monkeypatch.setattr(pipeline, "run_pipeline", stand_in)
    return made


def bench_by_hand() -> Results:
    speedup = Interval(ratio=1.8, low=1.7, high=1.9, num_pairs=5)
    cell = CellResult(isl=8, osl=4, batch_size=1, status="ok", speedup=speedup)
    cells = (cell, cell.model_copy(update={"speedup": None}))
    own = ComparisonResult(baseline="teacher-fp32", candidate="student-fp32", cells=cells)
    other = own.model_copy(update={"baseline": "student-fp32", "candidate": "student-int4"})
    return results_of([]).model_copy(update={"comparisons": (own, other)})


@pytest.mark.parametrize(
    ("asked", "passed"),
    [
        *((stage, [stage, "prune"]) for stage in ("prune", "generate", "correct", "distill")),
        *((stage, [stage, stage]) for stage in ("sparsify", "quantize", "bench")),
        (None, [None] * 2),
    ],
)
def test_a_restart_reaches_what_depends_on_it(
    calls: list[dict[str, Any]], tmp_path: Path, asked: str | None, passed: list[str | None]
) -> None:
    run_family(SOURCE, planned(tmp_path), tmp_path, Console(), Start(restart_from=asked))

    assert [call["restart_from"] for call in calls] == passed
    assert calls[0]["source"] == SOURCE
    assert calls[1]["source"].location == str(tmp_path / "6b" / "student")
    assert [call["out_dir"] for call in calls] == [tmp_path / "6b", tmp_path / "4b"]


def test_the_page_lists_speedups_against_the_own_teacher_only(
    calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    record = run_family(SOURCE, planned(tmp_path), tmp_path, Console(), Start())

    assert [len(entry.speedups) for entry in record.members] == [1, 1]
    assert record.members[0].speedups[0].ratio == 1.8
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "student-fp32 : teacher-fp32 | 8/4 | 1 | 1.80x (1.70 to 1.90) | ok" in page
    assert "int4" not in page


def test_an_interrupted_family_says_what_is_missing_and_continues(
    calls: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = pipeline.run_pipeline

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if calls:
            raise KeyboardInterrupt
        return stand_in(*arguments, **named)

    monkeypatch.setattr(pipeline, "run_pipeline", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_family(SOURCE, planned(tmp_path), tmp_path, Console(), Start())
    record = json.loads((tmp_path / "family.json").read_text(encoding="utf-8"))
    assert (record["complete"], [entry["name"] for entry in record["members"]]) == (False, ["6b"])
    assert "Not made yet: 4b" in (tmp_path / "README.md").read_text(encoding="utf-8")
    monkeypatch.setattr(pipeline, "run_pipeline", stand_in)
    assert run_family(SOURCE, planned(tmp_path), tmp_path, Console(), Start(resume=True)).complete
