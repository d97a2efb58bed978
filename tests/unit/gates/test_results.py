"""Recorded verdicts on three students of the real model: as the figures and limits say, by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.corruptions.report import RESULTS
from tests.performance.gate_results import CONSTANT, GATES, HARD, MILD, STRICTER

LOWER_IS_BETTER = ("perplexity_ratio", "perplexity", "kl", "memory", "size")
OF_TEXT = ("perplexity_ratio", "perplexity", "kl", "top1")
ACCURACY = (*OF_TEXT, "formats", "tasks", "task_ratio")
# Noise is told from its repetitions, which are not in the row.
TIMED = "speedup"


@pytest.fixture(scope="module")
def students() -> dict[str, Any]:
    found = json.loads((RESULTS / "gates.json").read_text(encoding="utf-8"))["data"]
    return {**found["students"], "stricter": found["stricter"]}


def by_hand(row: dict[str, Any]) -> str:
    """The verdict on a figure with its interval."""
    ends = [row["value"] if row[end] is None else row[end] for end in ("low", "high")]
    wrong = [end > row["limit"] if row["gate"] in LOWER_IS_BETTER else end < row["limit"] for end in ends]
    return "REGRESSION" if all(wrong) else "NOISY" if any(wrong) else "PASS"


def test_every_gate_of_the_recipe_was_judged(students: dict[str, Any]) -> None:
    for name in (MILD, HARD, CONSTANT):
        assert {row["gate"].replace("_", "-") for row in students[name]["rows"]} == set(GATES)


def test_the_mild_cut_passes_and_the_hard_one_fails_by_what_was_measured(students: dict[str, Any]) -> None:
    for name in (MILD, HARD):
        for row in students[name]["rows"]:
            if row["gate"] != TIMED:
                assert row["verdict"] == by_hand(row), (name, row["gate"])
    mild, hard = ({row["gate"]: row["verdict"] for row in students[name]["rows"]} for name in (MILD, HARD))
    assert students[MILD]["exit_code"] == 0
    assert set(mild.values()) <= {"PASS", "NOISY"}
    assert {mild[gate] for gate in (*ACCURACY, "memory", "size")} == {"PASS"}
    assert students[HARD]["exit_code"] == 6
    assert {hard[gate] for gate in OF_TEXT} == {"REGRESSION"}
    # Few items tell little; its export says what it says, and it is small.
    assert {hard[gate] for gate in ("tasks", "task_ratio")} <= {"REGRESSION", "NOISY"}
    assert {hard[gate] for gate in ("formats", "memory", "size")} == {"PASS"}


def test_constant_output_fails_every_gate(students: dict[str, Any]) -> None:
    assert students[CONSTANT]["exit_code"] == 6
    rows = {row["gate"]: row for row in students[CONSTANT]["rows"]}
    assert {row["verdict"] for row in rows.values()} == {"ANOMALOUS"}
    # Equal logits: every token of SmolLM2's vocabulary is as likely.
    assert rows["perplexity"]["value"] == pytest.approx(49152, rel=1e-4)


def test_stricter_limits_fail_with_the_code_of_their_kind(students: dict[str, Any]) -> None:
    found = [(one["exit_code"], row) for one in students["stricter"] for row in one["rows"]]
    assert {row["gate"].replace("_", "-") for _, row in found} == {name for one in STRICTER for name in one}
    for code, row in found:
        assert row["verdict"] in ("REGRESSION", "INFEASIBLE")
        assert code == (6 if row["gate"] in ACCURACY else 7)
