"""`plan` and `--help`: no network, no weights, no torch; published shapes exactly."""

from __future__ import annotations

import pytest

from tests.integration.command import command_here, succeed_here


def test_a_published_shape_of_a_hub_id() -> None:
    student = succeed_here("plan", "meta-llama/Llama-3.1-8B", "--target", "4b-width", "--fp8")["student"]
    assert (student["num_parameters"], student["dims"]["hidden_size"]) == (4512746496, 3072)


def test_plan_is_what_dry_run_shows() -> None:
    asked = (("plan",), ("--dry-run",), ("run", "--dry-run"))
    plans = [succeed_here(*words, "llama3.1-8b", "--target", "60%") for words in asked]
    assert plans[0] == plans[1] == plans[2]


def test_a_family_is_planned_member_by_member() -> None:
    words = ("llama3.1-8b", "--target", "6b,4b", "--num-gpus", 32, "--gpu-hour-price", 2, "--mfu", 0.5)
    document = succeed_here("plan", *words)
    assert document["schema"] == "compress-export/family-plan/2"
    plans = [member["plan"] for member in document["members"]]
    assert plans[1]["teacher"] == plans[0]["student"]
    assert plans[1]["student"]["num_parameters"] == 4512746496
    assert plans[0]["training"]["assumed_utilisation"] == 0.5
    assert [row["num_gpus"] for row in plans[0]["training"]["by_num_gpus"]] == [1, 8, 32, 64, 256, 1024]
    hours = sum(plan["hours"]["gpu_hours"] for plan in plans)
    assert document["total"]["gpu_hours"] == pytest.approx(hours)
    assert document["total"]["cost_usd"] == pytest.approx(2 * hours, abs=0.02)
    shown = command_here("plan", *words).stdout
    assert ("== 6b ==" in shown, "== 4b ==" in shown) == (True, True)
    assert f"{document['total']['gpu_hours']:,.1f} GPU-hours" in shown
