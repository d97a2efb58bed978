"""Verdicts of the release gates against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from bench.compare.verdicts import SEVERITY
from compressor.core.errors import AccuracyGateError, SpeedGateError, UsageError
from compressor.gates.intervals import score_interval
from compressor.gates.judge import RULES, judge
from compressor.gates.record import Figure, GateReport, Table
from compressor.gates.report import gate_error
from compressor.recipe.gates import Gates
from compressor.recipe.recipe import load_recipe

TEACHER_NLL = (2.0, 2.2, 1.8, 2.1, 1.9)
# Each window is worse by 0.10, 0.12, 0.08, 0.11 and 0.09: by 0.1 on average, with a standard error of
# sqrt(0.00025 / 5) = 0.00707107. Student's t for four degrees of freedom at 97.5 % is 2.776445.
STUDENT_NLL = (2.10, 2.32, 1.88, 2.21, 1.99)
ERROR, T = 0.00707107, 2.776445
# Of 100 items the teacher has 80 right; the student 76 of these and none of the others: a share of 0.95.
# s - 0.95 t is 0.05 for 76 items, -0.95 for 4 and 0 for 20: its mean is 0, its standard deviation
# sqrt(3.8 / 99) = 0.195918, and the error of the share 0.0195918 / 0.8 = 0.0244898.
TEACHER_RIGHT = (1.0,) * 80 + (0.0,) * 20
STUDENT_RIGHT = (1.0,) * 76 + (0.0,) * 24


def mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


def teacher(**changes: Any) -> Table:
    found = Figure(value=mean(TEACHER_NLL), samples=TEACHER_NLL)
    right = Figure(value=0.8, samples=TEACHER_RIGHT)
    given = {"conditions": {"window": "64"}, "information": {"teacher": 2.0}}
    figures = {"nll": {"teacher": found}, "chat nll": {"teacher": found}, "tasks": {"quiz": right}}
    return Table(**{**given, "figures": figures, **changes})


def student(figures: dict[str, dict[str, Figure]], **changes: Any) -> Table:
    given = {"conditions": {"window": "64"}, "information": {"student": 1.5}}
    return Table(**{**given, "figures": figures, **changes})


def nll(samples: tuple[float, ...] = STUDENT_NLL) -> dict[str, dict[str, Figure]]:
    return {"nll": {"student": Figure(value=mean(samples), samples=samples, against="teacher")}}


def one(metric: str, subject: str = "student", **figure: Any) -> dict[str, dict[str, Figure]]:
    return {metric: {subject: Figure(**figure)}}


def verdicts(report: GateReport) -> list[str]:
    return [row.verdict for row in report.rows]


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [
        (1.2, "PASS"),  # the ratio is e^0.1 = 1.1052, its interval 1.0837 to 1.1271
        (1.128, "PASS"),
        (1.126, "NOISY"),
        (1.085, "NOISY"),
        (1.083, "REGRESSION"),
        (1.05, "REGRESSION"),
    ],
)
def test_the_perplexity_ratio_is_judged_by_its_paired_interval(limit: float, verdict: str) -> None:
    report = judge(Gates(perplexity_ratio=str(limit)), teacher(), student(nll()))
    (row,) = report.rows
    assert row.verdict == verdict
    assert row.value == pytest.approx(math.exp(0.1))
    assert (row.low, row.high) == pytest.approx(
        (math.exp(0.1 - T * ERROR), math.exp(0.1 + T * ERROR)), rel=1e-5
    )


def test_windows_are_paired_so_that_their_own_difficulty_is_no_noise() -> None:
    """The windows' losses vary by 0.16, twenty times as much as their differences."""
    shuffled = STUDENT_NLL[::-1]
    assert verdicts(judge(Gates(perplexity_ratio="1.13"), teacher(), student(nll()))) == ["PASS"]
    assert verdicts(judge(Gates(perplexity_ratio="1.13"), teacher(), student(nll(shuffled)))) == ["NOISY"]


@pytest.mark.parametrize(
    ("sigmas", "verdict"),
    [
        ("13sigma", "REGRESSION"),  # e^(13 x 0.00707) = 1.0963 < 1.1052
        ("14sigma", "REGRESSION"),  # 1.1041: missed as well
        ("15sigma", "NO-BASELINE"),  # 1.1119: more than 10 % would be let pass
    ],
)
def test_a_limit_of_measured_noise(sigmas: str, verdict: str) -> None:
    (row,) = judge(Gates(perplexity_ratio=sigmas), teacher(), student(nll())).rows
    assert row.verdict == verdict
    assert row.limit == pytest.approx(math.exp(float(sigmas.removesuffix("sigma")) * ERROR), rel=1e-5)


def test_a_student_within_the_noise_passes() -> None:
    close = (2.001, 2.198, 1.803, 2.099, 1.901)  # mean difference 0.0004, standard error 0.00093
    assert verdicts(judge(Gates(perplexity_ratio="1sigma"), teacher(), student(nll(close)))) == ["PASS"]


@pytest.mark.parametrize(
    ("gates", "figure", "verdict"),
    [
        ({"perplexity": 8.0}, {"value": 7.0, "low": 6.0, "high": 7.9}, "PASS"),
        ({"perplexity": 8.0}, {"value": 7.9, "low": 7.0, "high": 8.1}, "NOISY"),
        ({"perplexity": 8.0}, {"value": 9.0, "low": 8.1, "high": 10.0}, "REGRESSION"),
        ({"perplexity": 8.0}, {"value": 0.5}, "ANOMALOUS"),
        ({"perplexity": 8.0}, {"value": math.nan}, "ANOMALOUS"),
        ({"kl": 0.1}, {"value": 0.05}, "PASS"),
        ({"kl": 0.1}, {"value": -0.01}, "ANOMALOUS"),
        ({"kl": 0.1}, {"value": None, "reason": "never"}, "NO-BASELINE"),
        ({"top1": 0.9}, {"value": 0.95, "low": 0.91, "high": 0.99}, "PASS"),
        ({"top1": 0.9}, {"value": 0.89, "low": 0.87, "high": 0.91}, "NOISY"),
        ({"top1": 0.9}, {"value": 1.2}, "ANOMALOUS"),
        ({"speedup": 1.5}, {"value": 1.6, "low": 1.55, "high": 1.65, "best": 2.0}, "PASS"),
        ({"speedup": 1.5}, {"value": 1.4, "low": 1.3, "high": 1.45, "best": 2.0}, "REGRESSION"),
        ({"speedup": 1.5}, {"value": 1.6, "best": 2.0, "noise": "another tenant"}, "NOISY"),
        ({"speedup": 2.5}, {"value": 1.6, "low": 1.55, "high": 1.65, "best": 2.0}, "INFEASIBLE"),
        # Rates are measured too: what was seen to keep the limit was not out of reach.
        ({"speedup": 1.5}, {"value": 1.58, "low": 1.57, "high": 1.59, "best": 1.33}, "PASS"),
        ({"speedup": 1.5}, {"value": 1.5, "low": 1.4, "high": 1.6, "best": 1.33}, "NOISY"),
        ({"speedup": 1.5}, {"value": 9.0, "best": 2.0}, "ANOMALOUS"),
        ({"memory": 1000}, {"value": 900.0}, "PASS"),
        ({"memory": 1000}, {"value": 1100.0}, "REGRESSION"),
        ({"size": 1000}, {"value": 900.0, "best": 800.0}, "PASS"),
        ({"size": 700}, {"value": 900.0, "best": 800.0}, "INFEASIBLE"),
        ({"size": 1000}, {"value": 500.0, "best": 800.0}, "ANOMALOUS"),
    ],
)
def test_one_figure(gates: dict[str, Any], figure: dict[str, Any], verdict: str) -> None:
    (name,) = gates
    assert verdicts(judge(Gates(**gates), teacher(), student(one(RULES[name].metric, **figure)))) == [verdict]


def test_a_figure_that_nobody_measured_fails_closed() -> None:
    (row,) = judge(Gates(speedup=1.5), teacher(), student({})).rows
    assert (row.verdict, row.found) == ("NO-BASELINE", "not measured")
    assert judge(Gates(speedup=1.5), teacher(), student({})).failed == (row,)


def test_every_format_has_its_own_limit() -> None:
    figures = {"format top1": {"onnx": Figure(value=1.0), "onnx-int4": Figure(value=0.8)}}
    report = judge(Gates(formats={"onnx": 0.99, "onnx-int4": 0.9}), teacher(), student(figures))
    assert {row.subject: row.verdict for row in report.rows} == {"onnx": "PASS", "onnx-int4": "REGRESSION"}


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [
        ("0.9", "PASS"),  # 0.95 - 1.984217 x 0.0244898 = 0.901407
        ("0.91", "NOISY"),
        ("0.99", "NOISY"),
        ("0.999", "REGRESSION"),  # 0.95 + 0.048593 = 0.998593
        # s - t is -1 for 4 items: its standard deviation is sqrt(3.84 / 99) = 0.196946, and the error of the
        # share 0.0246183: three of them are 7.4 %, which the missing 5 % lie within.
        ("3sigma", "PASS"),
        ("2sigma", "REGRESSION"),
        ("5sigma", "NO-BASELINE"),  # 12.3 %: too noisy to be a limit
    ],
)
def test_the_share_of_a_score_that_is_kept(limit: str, verdict: str) -> None:
    figures = {"tasks": {"quiz": Figure(value=0.76, samples=STUDENT_RIGHT, against="quiz")}}
    (row,) = judge(Gates(task_ratio=limit), teacher(), student(figures)).rows
    assert (row.subject, row.verdict) == ("quiz", verdict)
    assert row.value == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [("0.6", "NOISY"), ("0.4", "PASS")],  # Wilson: z^2 / (n + z^2) = 3.8415 / 6.8415 = 0.5615 may differ
)
def test_three_items_that_agree_say_little(limit: str, verdict: str) -> None:
    right = (1.0,) * 3
    figures = {"tasks": {"quiz": Figure(value=1.0, samples=right, against="quiz")}}
    theirs = {"tasks": {"quiz": Figure(value=1.0, samples=right)}}
    (row,) = judge(Gates(task_ratio=limit), teacher(figures=theirs), student(figures)).rows
    assert (row.verdict, row.low) == (verdict, pytest.approx(1 - 0.5615, abs=1e-4))


@pytest.mark.parametrize("limit", ["1sigma", "3sigma"])
def test_a_ruined_student_fails_whatever_its_noise(limit: str) -> None:
    """Its windows differ so much from each other that the limit alone would let most of it pass."""
    ruined = tuple(
        loss + 4.5 + step for loss, step in zip(TEACHER_NLL, (-0.4, 0.4, 0, 0.3, -0.3), strict=True)
    )
    report = judge(Gates(perplexity_ratio=limit), teacher(), student(nll(ruined)))
    assert verdicts(report) == ["REGRESSION"]
    assert report.failed


def test_a_quantised_model_is_judged_by_the_same_limits_of_tasks() -> None:
    figures = {"tasks": {"quiz": Figure(value=0.7), "quiz (student FP8)": Figure(value=0.4)}}
    rows = judge(Gates(tasks={"quiz": 0.5}), teacher(), student(figures)).rows
    assert {row.subject: row.verdict for row in rows} == {
        "quiz": "PASS",
        "quiz (student FP8)": "REGRESSION",
    }
    (row,) = judge(Gates(tasks={"other": 0.5}), teacher(), student(figures)).rows
    assert (row.subject, row.verdict) == ("other", "NO-BASELINE")


EVERYTHING = Gates(
    tasks={"quiz": 0.0},
    task_ratio="0.5",
    perplexity_ratio="1.2",
    perplexity=1e9,
    kl=9.0,
    top1=0.0,
    chat_perplexity_ratio="1.2",
    chat_finished=0.0,
    formats={"onnx": 0.0},
    speedup=0.5,
    memory=10**9,
    size=10**9,
)
GOOD = {
    **nll(),
    **one("perplexity", value=8.0),
    **one("kl", value=0.1),
    **one("tasks", "quiz", value=0.76, samples=STUDENT_RIGHT, against="quiz"),
    **one("top1", value=0.9),
    **one("chat nll", value=mean(STUDENT_NLL), samples=STUDENT_NLL, against="teacher"),
    **one("chat finished", value=0.9),
    **one("format top1", "onnx", value=1.0),
    **one("speedup", "fp32 128/128 x 1", value=2.0),
    **one("memory", "fp32", value=5.0),
    **one("size", value=5.0),
}


def test_every_gate_passes_with_good_figures() -> None:
    report = judge(EVERYTHING, teacher(), student(GOOD))
    assert {row.gate for row in report.rows} == set(RULES) == set(EVERYTHING.demanded())
    assert (report.verdict, report.failed) == ("PASS", ())
    assert gate_error(report, where="out") is None


@pytest.mark.parametrize("information", [0.0, 0.019, math.nan])
def test_a_student_of_constant_output_fails_every_gate(information: float) -> None:
    report = judge(EVERYTHING, teacher(), student(GOOD, information={"student": information}))
    assert set(verdicts(report)) == {"ANOMALOUS"}
    assert len(report.failed) == len(report.rows) == len(RULES)
    assert "whatever it reads" in report.rows[0].reason


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"information": {"student": None}}, "NO-BASELINE"),
        ({"information": {}}, "NO-BASELINE"),
        ({"conditions": {"window": "128"}}, "MISMATCH"),
        ({"conditions": {}}, "MISMATCH"),
    ],
)
def test_what_cannot_be_compared_fails_every_gate(changes: dict[str, Any], verdict: str) -> None:
    report = judge(EVERYTHING, teacher(), student(GOOD, **changes))
    assert set(verdicts(report)) == {verdict}
    assert len(report.failed) == len(RULES)


@pytest.mark.parametrize(
    ("fail_on", "failing"),
    [
        ("regression", {"NO-BASELINE", "REGRESSION", "INFEASIBLE", "ANOMALOUS", "MISMATCH"}),
        ("noisy", {"NO-BASELINE", "NOISY", "REGRESSION", "INFEASIBLE", "ANOMALOUS", "MISMATCH"}),
        ("never", set()),
    ],
)
def test_what_fails(fail_on: Any, failing: set[str]) -> None:
    (row,) = judge(Gates(kl=1.0), teacher(), student(one("kl", value=0.1))).rows
    rows = tuple(row.model_copy(update={"verdict": verdict}) for verdict in SEVERITY)
    assert {found.verdict for found in GateReport(fail_on=fail_on, rows=rows).failed} == failing


def test_accuracy_goes_before_speed_in_the_exit_code() -> None:
    slow = one("speedup", "fp32 128/128 x 1", value=1.0)
    inaccurate = one("kl", value=2.0)
    both = judge(Gates(speedup=1.5, kl=1.0), teacher(), student({**slow, **inaccurate}))
    error = gate_error(both, where="out")
    assert isinstance(error, AccuracyGateError)
    assert (error.exit_code, error.expected) == (6, "kl of student at most 1 nats")
    assert error.found == "kl of student 2 nats"
    only_slow = gate_error(judge(Gates(speedup=1.5), teacher(), student(slow)), where="out")
    assert isinstance(only_slow, SpeedGateError)
    assert only_slow.exit_code == 7
    large = judge(Gates(size=3), teacher(), student(one("size", value=5.0)))
    assert isinstance(gate_error(large, where="out"), SpeedGateError)


@pytest.mark.parametrize("limit", ["-1", "0", "sigma", "0sigma", "nan", "inf", "much", True])
def test_limits_that_say_nothing_are_refused(limit: object) -> None:
    with pytest.raises(UsageError):
        load_recipe(None, {"model": "smollm2-135m", "gates.perplexity_ratio": limit})


@pytest.mark.parametrize(
    "shares", ["onnx=0.9, onnx=0.1", "onnx", "onnx=2", "onnx=-0.1", "=0.5", "onnx=nan", {"onnx": 3}]
)
def test_shares_that_are_none_are_refused(shares: object) -> None:
    with pytest.raises(UsageError):
        load_recipe(None, {"model": "smollm2-135m", "gates.formats": shares})


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ((1.0, 1.0, 1.0), (0.43850, 1.0)),  # Wilson: n / (n + z^2)
        ((1.0, 0.0, 0.0, 1.0), (0.15004, 0.84996)),
        ((0.5, 0.7), (0.6 - 12.7062 * 0.1, 0.6 + 12.7062 * 0.1)),  # Student's t of one degree of freedom
    ],
)
def test_the_interval_of_a_score(items: tuple[float, ...], expected: tuple[float, float]) -> None:
    assert score_interval(items) == pytest.approx(expected, abs=1e-4)


def test_limits_are_read_from_a_recipe_as_from_options() -> None:
    given = {"perplexity_ratio": 1.2, "formats": {"onnx": 0.9}, "size": 3 << 30}
    of_recipe = load_recipe(None, {"model": "smollm2-135m", **{f"gates.{k}": v for k, v in given.items()}})
    texts = {"perplexity_ratio": "1.2", "formats": "onnx=0.9", "size": "3GiB"}
    of_options = load_recipe(None, {"model": "smollm2-135m", **{f"gates.{k}": v for k, v in texts.items()}})
    assert of_recipe.gates == of_options.gates
    assert of_recipe.gates.demanded() == ("perplexity_ratio", "formats", "size")
