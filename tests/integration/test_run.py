"""The main job on a tiny model: its parts, its second run, changed options, and kills."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.integration.command import command_here, digests, kill_when, succeed, succeed_here, write_recipe
from tests.records import record_again

Finished = tuple[Path, dict[str, Any]]  # a run's directory and its summary
EXPORTS = ("huggingface-fp8", "onnx", "onnx-int4", "tensorrt-llm-fp8")
COMPARED = (
    *("student", "exports", "stages/prune/prune_plan.json", "stages/reconstruct/model.safetensors"),
    "stages/evaluate/evaluation.json",
)


@pytest.fixture(scope="module")
def recipe(tiny_checkpoint: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that takes the tiny model through every stage."""
    training = {"tokens": 7680, "micro_batch_size": 4, "learning_rate": 2e-3, "save_steps": 10}
    grid = {"isl_osl": [[8, 4]], "batch_sizes": [1], "max_pairs": 5, "precisions": ["fp32"]}
    return write_recipe(
        tmp_path_factory.mktemp("recipes") / "recipe.yaml",
        *(tiny_checkpoint, tiny_text),
        distill=training,
        quantize={"fp8": True},
        bench={"runtime": "auto", **grid},
    )


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One undisturbed run and its summary."""
    out = tmp_path_factory.mktemp("runs") / "out"
    return out, succeed("run", "--config", recipe, "-o", out)


def test_every_part_of_the_run_directory_is_there(finished: Finished) -> None:
    out, summary = finished
    files = ("recipe.yaml", "plan.json", "manifest.json", "README.md")
    files += ("student/model.safetensors", "student/tokenizer.json", "student/verification.json")
    files += ("bench/results.json", "bench/report.md")
    files += tuple(f"exports/{name}/verification.json" for name in EXPORTS)
    assert [name for name in files if not (out / name).is_file()] == []
    models = summary["evaluation"]["models"]
    assert list(models) == ["teacher", "pruned", "reconstructed", "distilled", "quantized"]
    assert models["distilled"]["perplexity"] < models["reconstructed"]["perplexity"]
    # Of a teacher that is random, only agreement with it says what a repair is worth.
    assert models["reconstructed"]["agreement"]["kl"] < models["pruned"]["agreement"]["kl"]
    assert summary["exports"]["onnx"]["logits"]["all"]["top1_agreement"] >= 0.999
    assert not list(out.rglob("*.partial"))


def test_the_checkpoint_of_a_run_verifies_again_and_a_changed_scale_does_not(
    finished: Finished, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished[0], tmp_path / "out"))
    export = out / "exports" / "tensorrt-llm-fp8"
    assert finished[1]["exports"]["tensorrt-llm-fp8"]["checks"]["scales_follow_recorded_amax"] is True
    checked = {Path(entry["path"]).name: entry for entry in succeed_here("verify", out)["checked"]}
    assert checked["tensorrt-llm-fp8"]["status"] == "reported"
    tensors = load_file(export / "checkpoint" / "rank0.safetensors")
    tensors["transformer.layers.0.mlp.proj.activation_scaling_factor"] *= 2
    save_file(tensors, export / "checkpoint" / "rank0.safetensors")
    assert command_here("verify", out).returncode == 8
    record_again(export)
    done = command_here("verify", out)
    assert done.returncode == 8
    assert "does not follow from calibration" in done.stderr


def test_manifest_records_every_stage(finished: Finished) -> None:
    manifest = json.loads((finished[0] / "manifest.json").read_text())
    stages = manifest["stages"]
    expected = {f"stages/{name}" for name in ("prune", "reconstruct", "distill", "quantize")}
    expected |= {"student", "exports/onnx", "bench"}
    assert expected <= set(stages)
    assert all(stage["seconds"] > 0 and stage["peak_memory_bytes"] > 0 for stage in stages.values())
    assert manifest["versions"]["torch"] != "absent"


def test_card_repeats_the_measured_numbers(finished: Finished) -> None:
    out, summary = finished
    card = (out / "README.md").read_text()
    for model in summary["evaluation"]["models"].values():
        assert f"{model['perplexity']:.3f}" in card
    assert f"{summary['plan']['student']['num_parameters']:,}" in card
    assert "not measured" in card


def test_a_second_run_skips_everything(finished: Finished, recipe: Path) -> None:
    out, summary = finished
    before = digests(out, (*COMPARED, "bench"))
    again = succeed_here("run", "--config", recipe, "-o", out, "--resume")
    assert again["evaluation"] == summary["evaluation"]
    assert again["bench"] == summary["bench"]
    assert digests(out, (*COMPARED, "bench")) == before


def test_a_changed_option_is_refused_with_what_changed(finished: Finished, recipe: Path) -> None:
    kept = (*COMPARED, "recipe.yaml", "plan.json")
    before = digests(finished[0], kept)
    done = command_here("run", "--config", recipe, "-o", finished[0], "--learning-rate", "0.004")
    assert done.returncode == 2
    assert "learning_rate: 0.002 -> 0.004" in done.stderr
    assert "--restart-from distill" in done.stderr
    assert digests(finished[0], kept) == before


def test_the_student_is_written_whatever_else_is(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = (
        "run",
        tiny_checkpoint,
        "--shape",
        "hidden_size=48",
        "--importance",
        "random",
        "--tokens",
        0,
        "--repair",
        "off",
    )
    words += ("--eval-data", tiny_text, "--formats", "tensorrt-llm", "-o", out, "--quiet")
    summary = succeed_here(*words)
    assert (out / "student" / "verification.json").is_file()
    assert list(summary["exports"]) == ["huggingface", "tensorrt-llm"]
    assert summary["warnings"][0].startswith("no export to benchmark")
    assert json.loads((out / "manifest.json").read_text())["warnings"] == summary["warnings"][:1]


@pytest.mark.timeout(1800)
def test_killed_in_every_stage_and_resumed_equals_undisturbed(
    finished: Finished, recipe: Path, tmp_path: Path
) -> None:
    """SIGKILL while pruning, distilling and exporting; then the same command.

    Without the benchmark, which is not compared: it decides nothing that is.
    """
    out, config = tmp_path / "out", tmp_path / "recipe.yaml"
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    config.write_text(yaml.safe_dump({**tree, "bench": {"runtime": "none"}}), encoding="utf-8")
    arguments = ("run", "--config", config, "-o", out)
    moments = (
        out / "stages" / "prune.partial" / "importance.safetensors",
        out / "stages" / "distill.partial" / "checkpoints" / "checkpoint-20" / "complete",
        out / "exports" / "onnx.partial",
    )
    for moment in moments:
        kill_when(moment.exists, *arguments)
    succeed(*arguments)
    assert digests(out, COMPARED) == digests(finished[0], COMPARED)
