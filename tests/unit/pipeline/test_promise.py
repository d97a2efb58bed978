"""What a run was asked to reach, against results by hand, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats

from bench.design.grid import Cell
from bench.report.results import CellResult, Results
from compressor.core.errors import UsageError
from compressor.models.dims import kv_cache_bytes_per_token
from compressor.models.presets import PRESETS
from compressor.pipeline.promise import (
    Measured,
    check_promise,
    promise_row,
    promise_warnings,
    question_of,
    require_one_size,
    weights_in,
)
from compressor.planning.outcome import Promise
from compressor.recipe.recipe import Quantize, load_recipe
from tests.unit.bench.results_by_hand import cell_of, results_of

DIMS = PRESETS["smollm2-135m"].dims
BASE, STUDENT = (1.5, 1.56, 1.47, 1.53, 1.5), (1.0, 1.01, 0.99, 1.0, 1.0)
NOISY = (0.5, 2.0, 0.7, 1.4, 1.0)
CELL = Cell(8, 4, 2)


def promise(goal: str, target: float, **fields: object) -> Promise:
    values: dict[str, object] = {
        "precision": "fp32",
        "runtime": "onnxruntime",
        "batch_size": 2,
        "isl": 8,
        "osl": 4,
        "predicted": target * 1.02,
        "of_teacher": 1.0,
        "source": "layer times",
        "basis": "times by hand",
    }
    return Promise(goal=goal, target=target, **{**values, **fields})


def results(*cells: CellResult) -> Results:
    return results_of(cells)


def check(asked: Promise, bench: Results | None) -> Measured:
    return check_promise(asked, student=DIMS, checkpoint=Path(), quantize=Quantize(), bench=bench)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Geometric mean and Student's t on logarithms."""
    logs = np.log(values)
    low, high = stats.t.interval(0.95, len(logs) - 1, logs.mean(), stats.sem(logs))
    return math.exp(logs.mean()), math.exp(low), math.exp(high)


def test_a_speedup_is_kept_where_its_interval_reaches_it() -> None:
    expected = interval(np.array(BASE) / np.array(STUDENT))
    for target, verdict in ((1.3, "kept"), (expected[2] - 0.001, "kept"), (expected[2] + 0.001, "missed")):
        found = check(promise("speedup", target), results(cell_of(BASE, STUDENT, CELL)))
        assert found.verdict == verdict
        assert (found.value, found.low, found.high) == pytest.approx(expected)


def test_a_latency_is_kept_where_its_interval_reaches_down_to_it() -> None:
    # Four tokens of equal distance: a quarter of the whole each.
    expected = interval(np.array(STUDENT) / 4)
    for target, verdict in ((0.3, "kept"), (expected[1] + 1e-5, "kept"), (expected[1] - 1e-5, "missed")):
        found = check(promise("latency", target), results(cell_of(BASE, STUDENT, CELL)))
        assert found.verdict == verdict
        assert (found.value, found.low, found.high) == pytest.approx(expected)


def test_a_latency_of_several_series_is_over_their_means() -> None:
    cell = cell_of(BASE * 2, STUDENT + tuple(2 * value for value in STUDENT), CELL)
    found = check(promise("latency", 0.3), results(cell.model_copy(update={"num_series": 2})))
    means = [stats.gmean(np.array(STUDENT) / 4), stats.gmean(np.array(STUDENT) / 2)]
    assert (found.value, found.low, found.high) == pytest.approx(interval(np.array(means)))


@pytest.mark.parametrize(
    ("bench", "reason"),
    [
        (None, "no benchmark"),
        (results(cell_of(BASE, STUDENT, Cell(8, 5, 2))), "did not measure it"),
        (results(cell_of(BASE, STUDENT, Cell(8, 4, 2, 3))), "did not measure it"),
        (results(cell_of(BASE, NOISY, CELL)), "NOISY: the 95 % interval"),
        (results(CellResult(isl=8, osl=4, batch_size=2, status="FAIL", reason="no memory")), "no memory"),
    ],
)
@pytest.mark.parametrize("goal", ["speedup", "latency"])
def test_what_was_not_measured_says_why(bench: Results | None, reason: str, goal: str) -> None:
    asked = promise(goal, 1.3)
    found = check(asked, bench)
    assert found.verdict == check(promise(goal, 1e-9), bench).verdict == "not measured"
    assert reason in str(found.reason)
    assert reason in promise_warnings(asked, found)[0]
    assert promise_row(asked, found)[-1] == "not measured"


def test_another_precision_is_another_promise() -> None:
    found = check(promise("speedup", 1.3, precision="int4"), results(cell_of(BASE, STUDENT, CELL)))
    assert found.verdict == "not measured"


def test_memory_is_counted_in_the_checkpoint(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(7, 5, dtype=torch.bfloat16), "b": torch.zeros(3, dtype=torch.float32)}
    save_file(tensors, tmp_path / "model-1.safetensors")
    save_file({"c": torch.zeros(11, dtype=torch.uint8)}, tmp_path / "model-2.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert weights_in(tmp_path) == 70 + 12 + 11
    size = 93 + 2 * 30 * kv_cache_bytes_per_token(DIMS)
    for target, verdict in ((size, "kept"), (size - 1, "missed")):
        asked = promise("memory", target, isl=None, osl=None, context_length=30, precision="bf16")
        found = check_promise(
            asked,
            student=DIMS,
            checkpoint=tmp_path,
            quantize=Quantize(),
            bench=results(cell_of(BASE, STUDENT)),
        )
        assert (found.verdict, found.value) == (verdict, size)
    found = check_promise(asked, student=DIMS, checkpoint=None, quantize=Quantize(fp8=True), bench=None)
    assert (found.verdict, found.reason) == ("not measured", "huggingface-fp8 is none of the formats")


def test_only_a_missed_promise_is_warned_of() -> None:
    kept = check(promise("speedup", 1.3), results(cell_of(BASE, STUDENT, CELL)))
    assert promise_warnings(promise("speedup", 1.3), kept) == ()
    missed = check(promise("speedup", 1.9), results(cell_of(BASE, STUDENT, CELL)))
    [warning] = promise_warnings(promise("speedup", 1.9), missed)
    for word in ("1.90x", "1.51x", "1.94x", "times by hand", "8/4", "batch 2", "missed"):
        assert word in warning
    row = promise_row(promise("speedup", 1.9), missed)
    assert (row[2], row[3], row[-1]) == ("1.90x", "1.94x (layer times)", "missed")


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"target": "60%", "outcome.speedup": "2x"}, "--target, --target-speedup"),
        ({"target": "60%", "prune.shape": "hidden_size=48"}, "--target, --shape"),
        ({"prune.shape": "hidden_size=48", "outcome.memory": "1GiB"}, "--shape, --target-memory"),
        ({"outcome.speedup": "2x", "outcome.latency": "5ms"}, "--target-speedup, --target-latency"),
        ({"outcome.speedup": "2x", "outcome.batch_size": 2}, "--target-batch-size"),
        ({"target": "60%", "outcome.context_length": 9}, "--target-context-length"),
        ({"outcome.memory": "1GiB", "outcome.layer_times": "x"}, "--layer-times"),
        ({"outcome.memory": "1GiB", "sparsify.pattern": "2:4", "sparsify.slorb": "fixed"}, "--slorb"),
    ],
)
def test_one_size_and_its_own_conditions_are_demanded(given: dict[str, object], where: str) -> None:
    with pytest.raises(UsageError) as caught:
        require_one_size(load_recipe(None, {"model": "m", **given}))
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"outcome.latency": "5ms", "bench.isl_osl": "8/1"}, "--isl-osl"),
        ({"outcome.speedup": "2x", "bench.batch_sizes": "2:4"}, "--batch-size"),
        ({"outcome.speedup": "2x", "bench.precisions": "bf16"}, "--bench-precisions"),
    ],
)
def test_a_benchmark_without_a_cell_to_promise_is_refused(given: dict[str, object], where: str) -> None:
    with pytest.raises(UsageError) as caught:
        question_of(load_recipe(None, {"model": "m", **given}))
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("fp32", "onnxruntime", 128, 128, 1)),
        (
            {"bench.precisions": "int4", "bench.batch_sizes": "2:4,8"},
            ("int4", "onnxruntime", 128, 128, 8),
        ),
        ({"bench.runtime": "torch", "bench.isl_osl": "9/7,1/1"}, ("fp32", "torch", 9, 7, 1)),
        (
            {"bench.runtime": "tensorrt-llm", "bench.concurrency": "4,8"},
            ("bf16", "tensorrt-llm", 128, 128, 4),
        ),
    ],
)
def test_a_speed_is_asked_of_the_benchmarks_first_cell(given: dict[str, object], expected: object) -> None:
    asked = question_of(load_recipe(None, {"model": "m", "outcome.speedup": "2x", **given}))
    assert asked is not None
    assert (asked.precision, asked.runtime, asked.isl, asked.osl, asked.batch_size) == expected


def test_on_a_gpu_elsewhere_the_student_is_asked_in_its_own_precision() -> None:
    for fp8, precision in ((False, "bf16"), (True, "fp8")):
        recipe = load_recipe(None, {"model": "m", "outcome.speedup": "2x", "quantize.fp8": fp8})
        asked = question_of(recipe, on_gpu=True)
        assert asked is not None
        assert (asked.precision, asked.runtime) == (precision, None)
