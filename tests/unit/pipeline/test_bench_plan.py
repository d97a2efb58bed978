"""The planned benchmark: arms and engines, disk against arithmetic by hand, hours against a sum by hand."""

from __future__ import annotations

import math

import pytest

from bench.design.grid import Cell
from bench.machine.roofline import floor_s, rates_of_gpu, work_of
from compressor import api
from compressor.core.errors import UsageError
from compressor.core.hardware import GPUS
from compressor.models.presets import PRESETS, published_target
from compressor.pipeline.bench_plan import BUILD_S, ROOFLINE_SHARE, START_S
from compressor.planning.cost import Hardware
from compressor.planning.plan import Plan
from compressor.planning.planned_bench import PlannedBench
from compressor.recipe.recipe import load_recipe

TEACHER = PRESETS["llama3.1-8b"].dims
STUDENT = published_target(TEACHER, "4b").dims  # type: ignore[union-attr]
ENGINES = {"bench.runtime": "tensorrt-llm", "quantize.fp8": True}


def planned(**fields: object) -> tuple[Plan, PlannedBench]:
    named = {name.replace("__", "."): value for name, value in fields.items()}
    recipe = load_recipe(None, {"model": "llama3.1-8b", "target": "4b", **ENGINES, **named})
    made = api.plan(recipe, hardware=Hardware(gpu="h100"), gpu="h100")
    assert isinstance(made, Plan)
    assert made.bench is not None
    return made, made.bench


@pytest.mark.parametrize(("batches", "num_cells"), [("max", 0), ("1,max", 5 * 2)])
def test_largest_batches_are_known_only_when_they_are_measured(batches: str, num_cells: int) -> None:
    """Then memory and hours of the benchmark are not known either."""
    _, bench = planned(bench__runtime="torch", bench__batch_sizes=batches)
    assert bench.num_cells == num_cells
    assert (bench.memory_bytes_per_device, bench.fits, bench.hours) == (None, None, None)
    assert bench.disk_bytes == 0


def test_four_engines_in_five_comparisons() -> None:
    _, bench = planned()
    assert [arm.name for arm in bench.arms] == ["teacher-bf16", "student-bf16", "teacher-fp8", "student-fp8"]
    assert [arm.engine for arm in bench.arms] == [
        *("stages/teacher-tensorrt-llm/engine", "exports/tensorrt-llm/engine"),
        *("stages/teacher-tensorrt-llm-fp8/engine", "exports/tensorrt-llm-fp8/engine"),
    ]
    assert len(bench.comparisons) == 5
    assert bench.num_cells == 5 * 2 * 3
    assert bench.num_runs == bench.num_cells * 2 * 10


def test_a_sparse_student_has_two_engines_of_each_precision() -> None:
    _, bench = planned(sparsify__pattern="2:4")
    engines = {arm.name: arm.engine for arm in bench.arms}
    assert engines["student-fp8"] == "exports/tensorrt-llm-fp8/engine-dense"
    assert engines["student-fp8+2:4"] == "exports/tensorrt-llm-fp8/engine"
    assert ("student-fp8", "student-fp8+2:4") in bench.comparisons
    assert ("teacher-bf16", "student-fp8+2:4") in bench.comparisons


def test_the_published_batches_are_in_the_plan_and_too_long_for_one_gpu() -> None:
    _, bench = planned(bench__preset="minitron-blog")
    # Three comparisons of two models at 32, 64 and 32:64; two of one model at 32 and 64.
    assert bench.num_cells == 11 * (3 * 3 + 2 * 2 + 0)
    assert bench.fits is False


def test_disk_counts_checkpoint_and_engine_of_everything_that_is_measured() -> None:
    made, bench = planned()
    sizes = {use.where: use.num_bytes for use in made.disk}
    of_teacher, of_student = made.teacher.weight_bytes, made.student.weight_bytes
    assert sizes["stages/teacher-quantize"] == of_teacher["bf16"] + of_teacher["fp8"]
    assert sizes["stages/teacher-tensorrt-llm"] == 2 * of_teacher["bf16"]
    assert sizes["stages/teacher-tensorrt-llm-fp8"] == 2 * of_teacher["fp8"]
    assert sizes["exports/tensorrt-llm-fp8"] == 2 * of_student["fp8"]
    teachers = 3 * (of_teacher["bf16"] + of_teacher["fp8"])
    assert bench.disk_bytes == teachers + of_student["bf16"] + of_student["fp8"]
    sparse, _ = planned(sparsify__pattern="2:4")
    of_sparse = {use.where: use.num_bytes for use in sparse.disk}
    where = "exports/tensorrt-llm"
    assert of_sparse[where] == sizes[where] // 2 * 3


def test_hours_are_the_sum_over_runs_and_engines() -> None:
    _, bench = planned(bench__isl_osl="128/128", bench__concurrency="8", bench__baselines="same-precision")
    rates = rates_of_gpu(GPUS["h100"])
    cell, waves = Cell(128, 128, 8), math.ceil((24 + 8) / 8)
    runs = [
        START_S + waves * floor_s(work_of(dims, precision, cell), rates, precision) / ROOFLINE_SHARE
        for precision in ("bf16", "fp8")
        for dims in (TEACHER, STUDENT)
    ]
    assert bench.hours == pytest.approx((10 * sum(runs) + 4 * BUILD_S) / 3600, abs=0.01)
    assert bench.num_runs == 40
    cache = 8 * 256 * TEACHER.num_hidden_layers * 2 * 8 * 128 * 2
    assert bench.memory_bytes_per_device == 2 * 8_030_261_248 + cache


def test_no_hours_are_invented_for_a_cpu() -> None:
    recipe = load_recipe(None, {"model": "llama3.1-8b", "target": "4b", "bench.runtime": "onnxruntime"})
    made = api.plan(recipe)
    assert isinstance(made, Plan)
    assert made.bench is not None
    assert [arm.name for arm in made.bench.arms] == [
        *("teacher-fp32", "student-fp32", "teacher-int4", "student-int4"),
    ]
    assert (made.bench.hours, made.bench.fits) == (None, None)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"export__formats": "huggingface"}, "none is built from the formats"),
        ({"bench__concurrency": "32:128"}, "more requests are to be in flight than an engine serves"),
        ({"export__tensorrt_llm__max_seq_len": 1999}, "the longest requests do not fit into the engine"),
    ],
)
def test_what_engines_cannot_do_is_refused_by_the_plan(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        planned(**fields)
