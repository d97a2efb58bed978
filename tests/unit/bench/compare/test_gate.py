"""The gate's verdicts, by hand and on thousands of simulated series."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from bench.compare.gate import (
    DEFAULT_THRESHOLDS,
    absolute_change_of,
    change_of,
    compare_results,
    judge_cell,
    ratio_change_of,
)
from bench.compare.gate_report import gate_document, render_gate
from bench.measure.statistics import PairedMeasurement, StoppingRule, measure_in_pairs
from bench.report.results import ArmCell, CellResult, Results, Summary
from tests.unit.bench.results_by_hand import CELL, cell_of, gpu, results_of

NUM_CELLS, NUM_VERDICTS = 2000, 1000
NUM_PAIRS, MAX_PAIRS = 10, 40
TEACHER_S, STUDENT_S = 2.0, 1.0
SERIES = ([2.0, 2.02, 1.98, 2.01, 1.99], [1.0, 1.01, 0.99, 1.01, 0.99])
STEADY, SLOWER = cell_of(*SERIES), cell_of(SERIES[0], [1.2, 1.21, 1.19, 1.21, 1.19])


def simulated_cells(
    *, cv: float, slowdown: float, seed: int, max_pairs: int = MAX_PAIRS, drift: float = 0.0
) -> Iterator[CellResult]:
    """Lognormal latencies of one machine and student; with `drift` every series has a ratio of its own."""
    generator = np.random.default_rng(seed)
    levels = np.array([TEACHER_S, STUDENT_S * (1 + slowdown)])
    rule = StoppingRule(min_pairs=NUM_PAIRS, max_pairs=max_pairs)

    level = 1.0

    def measure_pair(index: int) -> tuple[float, float]:
        nonlocal level
        if index == 0:
            level = math.exp(generator.normal(0.0, drift))
        teacher, student = levels * np.exp(generator.normal(0.0, cv, size=2))
        return float(teacher) * level, float(student)

    while True:
        yield bare_cell(measure_in_pairs(measure_pair, duration=float, rule=rule))


def bare_cell(measurement: PairedMeasurement[float]) -> CellResult:
    """Only what the gate reads, with the benchmark's own verdict on the noise."""
    baseline_s, candidate_s = np.array([pair for series in measurement.reported for pair in series]).T
    return CellResult(
        isl=1, osl=1, batch_size=1, status=measurement.verdict, reason=measurement.reason,
        speedup=measurement.interval,
        baseline=bare_arm(baseline_s),
        candidate=bare_arm(candidate_s),
        num_series=len(measurement.reported),
    )  # fmt: skip


def bare_arm(latencies_s: NDArray[np.float64]) -> ArmCell:
    samples = {"latency_s": latencies_s, "output_tokens_per_s": 1 / latencies_s}
    return ArmCell(
        num_warmup_runs=2,
        is_settled=True,
        exploration_latency_s=(),
        metrics={
            name: Summary(median=1.0, cv=0.0, minimum=1.0, maximum=1.0, samples=tuple(values.tolist()))
            for name, values in samples.items()
        },
    )


def verdicts(*, slowdown: float, seeds: tuple[int, int], **options: float) -> dict[str, float]:
    """The share of each verdict over the simulated pairs of benchmarks."""
    before = simulated_cells(slowdown=0.0, seed=seeds[0], **options)
    now = simulated_cells(slowdown=slowdown, seed=seeds[1], **options)
    counts = Counter(
        judge_cell(*pair, ratio_change_of(*pair), absolute_change_of(*pair), DEFAULT_THRESHOLDS)[0]
        for pair in itertools.islice(zip(before, now, strict=True), NUM_VERDICTS)
    )
    return {verdict: count / NUM_VERDICTS for verdict, count in counts.items()}


def test_an_unchanged_model_is_hardly_ever_called_slower() -> None:
    found = verdicts(cv=0.03, slowdown=0.0, seeds=(1, 2))
    assert found.get("REGRESSION", 0.0) <= 0.005
    assert found["PASS"] >= 0.95


def test_a_slow_down_of_15_percent_is_found() -> None:
    assert verdicts(cv=0.03, slowdown=0.15, seeds=(3, 4))["REGRESSION"] >= 0.99


@pytest.mark.parametrize(("cv", "slowdown"), [(0.105, 0.0), (0.12, 0.15), (0.2, 0.5)])
def test_beyond_a_spread_of_10_percent_there_is_never_a_verdict(cv: float, slowdown: float) -> None:
    # Forty pairs of a spread just above 10 % can look like less: the series here have ten.
    assert verdicts(cv=cv, slowdown=slowdown, seeds=(5, 6), max_pairs=NUM_PAIRS) == {"NOISY": 1.0}


@pytest.mark.parametrize(("cv", "drift"), [(0.03, 0.0), (0.06, 0.0), (0.03, 0.01), (0.03, 0.02)])
def test_intervals_cover_the_truth_despite_the_stopping(cv: float, drift: float) -> None:
    covered = 0
    for cell in itertools.islice(simulated_cells(cv=cv, slowdown=0.0, seed=7, drift=drift), NUM_CELLS):
        assert cell.speedup is not None
        covered += cell.speedup.low <= TEACHER_S / STUDENT_S <= cell.speedup.high
    assert 0.93 <= covered / NUM_CELLS <= 0.97


def test_a_machine_that_drifts_between_series_is_no_regression() -> None:
    found = verdicts(cv=0.01, slowdown=0.0, seeds=(8, 9), drift=0.03)
    assert found.get("REGRESSION", 0.0) <= 0.005


def test_a_certain_loss_of_throughput_is_not_hidden_by_an_uncertain_ratio() -> None:
    """Both arms fell, the candidate a little more, and the baseline's noise hides how much."""
    before = STEADY
    now = cell_of([3.0, 3.1, 2.9, 3.05, 2.95], [1.59, 1.60, 1.58, 1.60, 1.58])
    changes = ratio_change_of(before, now), absolute_change_of(before, now)
    assert changes[0].ratio < 1 - DEFAULT_THRESHOLDS.ratio
    assert changes[0].high >= 1
    verdict, reason = judge_cell(before, now, *changes, DEFAULT_THRESHOLDS)
    assert verdict == "REGRESSION"
    assert "absolute throughput" in reason


def test_changes_are_those_of_welchs_formula() -> None:
    """By hand: standard error, Welch-Satterthwaite degrees of freedom, and Student's quantile."""
    generator = np.random.default_rng(0)
    before, now = generator.normal(0.0, 0.1, 12), generator.normal(0.2, 0.3, 7)
    errors = [series.var(ddof=1) / series.size for series in (before, now)]
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / 11 + errors[1] ** 2 / 6)
    margin = stats.t.ppf(0.999, freedom) * math.sqrt(sum(errors))
    difference = now.mean() - before.mean()
    change = change_of(before, now)
    expected = [difference - margin, difference, difference + margin]
    assert np.log([change.low, change.ratio, change.high]) == pytest.approx(expected, rel=1e-12)


def test_series_without_any_spread_have_an_interval_without_width() -> None:
    change = change_of(np.zeros(5), np.full(5, np.log(2.0)))
    assert (change.low, change.ratio, change.high) == pytest.approx((2.0, 2.0, 2.0))


def test_equal_results_pass() -> None:
    report = compare_results(results_of([STEADY]), results_of([STEADY]))
    assert report.verdict == "PASS"
    assert report.cells[0].cell == str(CELL)


def test_a_slower_student_is_a_regression_and_a_faster_one_is_not() -> None:
    assert compare_results(results_of([STEADY]), results_of([SLOWER])).verdict == "REGRESSION"
    assert compare_results(results_of([SLOWER]), results_of([STEADY])).verdict == "PASS"


def test_a_machine_that_slows_both_arms_alike_keeps_the_ratio_and_passes_up_to_a_quarter() -> None:
    slower = [cell_of(*([value * factor for value in arm] for arm in SERIES)) for factor in (1.2, 1.5)]
    found = [compare_results(results_of([STEADY]), results_of([cell])).cells[0] for cell in slower]
    assert [cell.verdict for cell in found] == ["PASS", "REGRESSION"]
    assert "absolute throughput" in found[1].reason


def test_a_slow_down_too_small_in_seconds_does_not_count() -> None:
    before, now = cell_of([0.002] * 5, [0.001] * 5), cell_of([0.002] * 5, [0.0015] * 5)
    assert compare_results(results_of([before]), results_of([now])).verdict == "PASS"


def test_a_large_but_uncertain_slow_down_is_noisy() -> None:
    before = cell_of([2.0, 2.1, 1.9, 2.1, 1.9], [1.0, 1.05, 0.95, 1.05, 0.95])
    now = cell_of([2.0, 2.1, 1.9, 2.0, 2.0], [1.07, 1.1, 1.05, 1.13, 1.07])
    report = compare_results(results_of([before]), results_of([now]))
    assert report.verdict == "NOISY"
    assert "too few" in report.cells[0].reason


def test_a_cell_that_is_new_has_no_baseline_and_one_that_is_gone_or_fails_is_a_regression() -> None:
    failed = CellResult(isl=8, osl=4, batch_size=2, status="FAIL", reason="out of memory")
    cases = (([failed], [STEADY]), ([], [STEADY]), ([STEADY], [failed]), ([STEADY], []))
    found = [compare_results(results_of(before), results_of(now)).verdict for before, now in cases]
    assert found == ["NO-BASELINE", "NO-BASELINE", "REGRESSION", "REGRESSION"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"torch": "2.9"}, "torch was 2.8, is 2.9"),
        ({"gpus": (gpu("NVIDIA H100 PCIe"),)}, "NVIDIA H100 PCIe"),
        ({"gpus": (gpu(driver="2"),)}, "GPU driver"),
        ({"teacher_sha": "7"}, "model teacher-fp32"),
    ],
)
def test_another_machine_version_or_teacher_fails_closed(changed: dict[str, str], named: str) -> None:
    report = compare_results(
        results_of([STEADY], gpus=(gpu(),)), results_of([STEADY], **{"gpus": (gpu(),), **changed})
    )
    assert report.verdict == "MISMATCH"
    assert any(named in mismatch for mismatch in report.mismatches)
    assert {cell.verdict for cell in report.cells} == {"MISMATCH"}


def test_a_largest_batch_is_the_same_cell_at_another_size() -> None:
    before, now = (STEADY.model_copy(update={"is_largest": True, "batch_size": size}) for size in (8, 9))
    report = compare_results(results_of([before]), results_of([now]))
    assert [(cell.cell, cell.verdict) for cell in report.cells] == [("8/4 x largest", "PASS")]


def test_a_ratio_to_a_students_arm_never_counts() -> None:
    """The student's fp32 arm became faster, so its unchanged int4 arm looks slower beside it."""
    before, now = results_of([STEADY]), results_of([SLOWER])
    (compared,) = now.comparisons
    student = now.arms[1]
    twin = student.model_copy(update={"id": f"{student.model}-int4", "precision": "int4"})
    precision = compared.model_copy(update={"baseline": student.id, "candidate": twin.id})

    def beside(one: Results) -> Results:
        compared = precision.model_copy(update={"cells": one.comparisons[0].cells})
        return one.model_copy(update={"arms": (*one.arms, twin), "comparisons": (compared,)})

    report = compare_results(beside(before), beside(now))
    assert report.cells[0].verdict == "REGRESSION"
    assert "not gated" in report.cells[0].reason
    assert report.verdict != "REGRESSION"


def test_what_is_under_test_may_change_and_every_arm_of_the_teacher_may_not() -> None:
    def benchmark(int4_sha: str, *, student: bool) -> Results:
        full = results_of([STEADY])
        teacher = full.arms[0]
        files = {"model.onnx": teacher.files["model.onnx"].model_copy(update={"sha256": int4_sha * 64})}
        int4 = teacher.model_copy(update={"id": "teacher-int4", "precision": "int4", "files": files})
        precision = full.comparisons[0].model_copy(update={"candidate": int4.id})
        return full.model_copy(
            update={
                "arms": (teacher, int4, *(full.arms[1:] if student else ())),
                "comparisons": (precision, *(full.comparisons if student else ())),
            }
        )

    for student, expected in ((False, "PASS"), (True, "MISMATCH")):
        before, now = (benchmark(sha, student=student) for sha in "ab")
        assert compare_results(before, now).verdict == expected


def test_a_cell_that_the_baseline_exempts_is_reported_and_does_not_count() -> None:
    exempt = STEADY.model_copy(update={"gated": False, "not_gated_reason": "one sequence of four tokens"})
    report = compare_results(results_of([exempt]), results_of([SLOWER]))
    assert report.cells[0].verdict == "REGRESSION"
    assert report.cells[0].reason.startswith("not gated (one sequence of four tokens): ")
    assert report.verdict == "NO-BASELINE"
    other = STEADY.model_copy(update={"batch_size": 4})
    assert compare_results(results_of([exempt, other]), results_of([SLOWER, other])).verdict == "PASS"


def test_another_runtime_or_protocol_fails_closed() -> None:
    before, now = results_of([STEADY]), results_of([STEADY])
    arms = tuple(arm.model_copy(update={"runtime": "torch"}) for arm in now.arms)
    apart = now.protocol.model_copy(update={"processes": "alternating"})
    shorter = now.protocol.model_copy(update={"num_series": 4})
    changes = {"runtime": {"arms": arms}, "processes": {"protocol": apart}, "fresh": {"protocol": shorter}}
    for named, changed in changes.items():
        report = compare_results(before, now.model_copy(update=changed))
        assert report.verdict == "MISMATCH"
        assert any(mismatch.startswith(named) for mismatch in report.mismatches)


def test_the_students_files_and_the_tools_version_may_differ() -> None:
    before, now = results_of([STEADY]), results_of([STEADY])
    student = now.arms[1].model_copy(update={"files": {}})
    environment = now.environment.model_copy(update={"versions": {"compress-export": "2", "torch": "2.8"}})
    now = now.model_copy(update={"arms": (now.arms[0], student), "environment": environment})
    assert compare_results(before, now).verdict == "PASS"


def test_the_report_is_a_whole_table_and_a_json_document() -> None:
    report = compare_results(results_of([STEADY]), results_of([SLOWER]))
    assert json.loads(json.dumps(gate_document(report)))["verdict"] == "REGRESSION"
    rows = [line for line in render_gate(report).splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert "student-fp32 : teacher-fp32" in rows[2]
