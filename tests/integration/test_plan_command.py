"""`plan` and `--help`: no network, no weights, no torch; published shapes exactly."""

from __future__ import annotations

from pathlib import Path

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
    words = ("llama3.1-8b", "--target", "4b,3b", "--num-gpus", 32, "--gpu-hour-price", 2, "--mfu", 0.5)
    document = succeed_here("plan", *words)
    assert document["schema"] == "compress-export/family-plan/2"
    plans = [member["plan"] for member in document["members"]]
    assert plans[1]["teacher"] == plans[0]["student"]
    assert plans[0]["student"]["num_parameters"] == 4512746496
    assert plans[1]["student"]["num_parameters"] == pytest.approx(3e9, rel=0.02)
    assert plans[0]["training"]["assumed_utilisation"] == 0.5
    assert [row["num_gpus"] for row in plans[0]["training"]["by_num_gpus"]] == [1, 8, 32, 64, 256, 1024]
    hours = sum(plan["hours"]["gpu_hours"] for plan in plans)
    assert document["total"]["gpu_hours"] == pytest.approx(hours)
    assert document["total"]["cost_usd"] == pytest.approx(2 * hours, abs=0.02)
    shown = command_here("plan", *words).stdout
    assert ("== 4b ==" in shown, "== 3b ==" in shown) == (True, True)
    assert f"{document['total']['gpu_hours']:,.1f} GPU-hours" in shown


WIDTH = ("--shape", "hidden_size=432")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            ("--importance", "learned-masks", "--hidden-removal", "rotation", *WIDTH),
            2,
            "masks are learned instead of scores",
        ),
        (
            ("--importance", "learned-masks", "--shape", "num_key_value_heads=1,num_attention_heads=3"),
            3,
            "keep every key/value head",
        ),
        (("--mask-tokens", "1k", *WIDTH), 2, "no masks are learned"),
        (("--scores", "nowhere", *WIDTH), 2, "there are no saved scores"),
        (("--repair", "off", "--repair-steps", 3, *WIDTH), 2, "--repair is off, so these choices"),
        (("--repair", "off", "--repair-size", 9, *WIDTH), 2, "--repair is off, so these choices"),
        (("--repair", "off", "--fp8", "--repair-fp8", *WIDTH), 2, "--repair is off, so these choices"),
        (("--bench-series", "3", "--runtime", "vllm", *WIDTH), 2, "measures requests in flight"),
        (("--repair-fp8", *WIDTH), 2, "no model is quantized, so this choice has no effect"),
        (("--mask-swaps", 2, *WIDTH), 2, "no model is made sparse"),
        (("--slorb", "fixed", *WIDTH), 2, "no model is made sparse"),
        (("--importance", "taylor", "--batch-aggregation", "var", *WIDTH), 2, "aggregates no activations"),
        (("--calib-size", 2, *WIDTH), 2, "too few calibration sequences"),
        (("--sparsity", "2:4", "--slorb", "fixed", *WIDTH), 3, "cannot carry the low-rank branch"),
        (("--formats", "huggingface-fp8", *WIDTH), 2, "needs FP8"),
    ],
)
@pytest.mark.parametrize("words", [("plan",), ("run", "--dry-run")])
def test_a_plan_refuses_what_the_run_would(
    words: tuple[str, ...], options: tuple[object, ...], code: int, message: str
) -> None:
    done = command_here(*words, "smollm2-135m", *options)
    assert done.returncode == code, done.stdout
    assert message in " ".join(done.stderr.split())


def test_a_plan_refuses_a_model_that_a_device_has_no_kernels_for(tiny_checkpoint: Path) -> None:
    words = ("plan", tiny_checkpoint, "--shape", "intermediate_size=128", "--formats", "tensorrt-edge-llm")
    done = command_here(*words)
    assert done.returncode == 3, done.stdout
    assert "config.json: head_dim" in done.stderr


def test_a_run_begins_with_the_converter_of_its_format(tmp_path: Path) -> None:
    words = ("run", "smollm2-135m", "--shape", "hidden_size=432", "--formats", "tensorrt-edge-llm")
    done = command_here(*words, "-o", tmp_path / "run")
    assert done.returncode == 4, done.stdout
    assert "make edge-env" in done.stderr
    assert not (tmp_path / "run").exists()
