from __future__ import annotations

import pytest

from bench.report.results import CellResult, ComparisonResult, Results
from bench.report.waterfall import changes_between, waterfalls_of
from tests.unit.bench.results_by_hand import arm_record, cell_of, results_of


def road(*pairs: tuple[str, str, float]) -> Results:
    """A benchmark of these comparisons, each with the ratio given, over one cell."""
    names = list(dict.fromkeys(name for first, second, _ in pairs for name in (first, second)))
    arms = [arm_record(*(name.split("-")[0], "0", name.split("-")[1])) for name in names]
    comparisons = tuple(
        ComparisonResult(baseline=first, candidate=second, cells=(cell_of([ratio] * 5, [1.0] * 5),))
        for first, second, ratio in pairs
    )
    return results_of([]).model_copy(update={"arms": tuple(arms), "comparisons": comparisons})


STEPS = (
    ("teacher-bf16", "student-bf16", 2.0),
    ("student-bf16", "student-fp8", 1.4),
    ("teacher-bf16", "student-fp8", 2.5),
)


def test_the_total_is_the_measured_one_and_not_a_product() -> None:
    (waterfall,) = waterfalls_of(road(*STEPS))
    assert [step.change for step in waterfall.steps] == ["teacher → student", "bf16 → fp8"]
    ratios = [step.cell.speedup.ratio for step in (*waterfall.steps, waterfall.total) if step.cell.speedup]
    assert ratios == pytest.approx([2.0, 1.4, 2.5])


def test_without_a_measured_step_there_is_no_waterfall() -> None:
    assert waterfalls_of(road(STEPS[0], STEPS[2])) == []
    assert waterfalls_of(road(*STEPS[:2])) == []


def test_a_step_that_failed_leaves_no_waterfall() -> None:
    results = road(*STEPS)
    failed = CellResult(isl=8, osl=4, batch_size=2, status="FAIL", reason="out of memory")
    broken = results.comparisons[1].model_copy(update={"cells": (failed,)})
    comparisons = (results.comparisons[0], broken, results.comparisons[2])
    assert waterfalls_of(results.model_copy(update={"comparisons": comparisons})) == []


def test_a_third_change_makes_a_longer_road() -> None:
    sparse = ("student-bf16", "student-bf16+2:4", 1.1), ("teacher-bf16", "student-bf16+2:4", 2.2)
    waterfalls = waterfalls_of(road(*STEPS, *sparse))
    assert [step.change for step in waterfalls[1].steps] == ["teacher → student", "dense → 2:4"]


def test_changes_are_named() -> None:
    found = changes_between(arm_record("t", "0", "bf16"), arm_record("s", "0", "fp8+2:4"))
    assert found == ["t → s", "bf16 → fp8", "dense → 2:4"]
