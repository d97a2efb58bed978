"""A run of several cuts with training between them: every cut, the report, resuming and verification."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from compressor.core.errors import VerificationError
from compressor.pipeline import interleaving
from compressor.runs.artifact import read_artifact
from exporters.checks.depth import check_layer_importance
from exporters.checks.documents import check_cuts
from tests.integration.command import command_here, digests, succeed_here, write_recipe

Finished = tuple[Path, Path, dict[str, Any]]  # a run's recipe, its directory and its summary
CUTS = 3
NAMES = ("cut-1-prune", "cut-1-reconstruct", "cut-1-distill", "cut-2-prune", "cut-2-reconstruct")
NAMES += ("cut-2-distill", "prune", "reconstruct", "distill")


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    directory = tmp_path_factory.mktemp("interleaved")
    recipe = write_recipe(
        directory / "recipe.yaml",
        *(tiny_checkpoint, tiny_text),
        prune={
            "shape": {"intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
            "depth_importance": "loss",
            "depth_size": 2,
        },
        interleave={"cuts": CUTS},
        distill={"tokens": CUTS * 384 + 100, "batch_size": 4},
        calibration={"size": 4},
        export={"formats": ["huggingface"]},
    )
    return recipe, directory / "out", succeed_here("run", "--config", recipe, "-o", directory / "out")


def artifact(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "stages" / name / "artifact.json").read_text())
    return found


def test_each_cut_is_made_from_what_the_training_before_it_left(finished: Finished) -> None:
    _, out, summary = finished
    made = {name: artifact(out, name) for name in NAMES}
    for before, after in pairwise(NAMES):
        assert made[after]["inputs"]["source"] == made[before]["fingerprint"]
    original = made["cut-1-prune"]["inputs"]["source"]
    for name in ("cut-1-distill", "cut-2-distill", "distill"):
        assert made[name]["inputs"]["teacher"] == original
    # A repair compares with the model that was cut.
    for name, cut_from in (("cut-2-reconstruct", "cut-1-distill"), ("reconstruct", "cut-2-distill")):
        assert made[name]["inputs"]["teacher"] == made[cut_from]["fingerprint"]
    assert artifact(out, "prune")["lineage"][-7:] == ["prune", "reconstruct", "distill"] * 2 + ["prune"]
    assert [cut["tokens"] for cut in summary["cuts"]] == [384] * CUTS


def test_every_cut_is_a_model_of_the_planned_shape(finished: Finished) -> None:
    _, out, summary = finished
    sizes = []
    for cut, name in zip(summary["plan"]["cuts"], ("cut-1-", "cut-2-", ""), strict=True):
        model = AutoModelForCausalLM.from_pretrained(out / "stages" / f"{name}distill")
        sizes.append(model.num_parameters())
        assert sizes[-1] == cut["num_parameters"]
        assert model.config.intermediate_size == cut["shape"]["intermediate_size"]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == summary["plan"]["student"]["num_parameters"]


def test_the_trainings_read_the_text_one_after_the_other(finished: Finished) -> None:
    """As one training of all their steps would, in which no sequence comes twice."""
    _, out, _ = finished
    drawn = [artifact(out, name)["details"] for name in ("cut-1-distill", "cut-2-distill", "distill")]
    assert [part["domains"]["text"] for part in drawn] == [12] * CUTS
    shares = [part["epochs"] for part in drawn]
    assert np.allclose(shares, [1 / 3, 2 / 3, 1], atol=1e-3)


def test_the_report_shows_every_cut_and_the_importance_of_its_layers(finished: Finished) -> None:
    recipe, out, summary = finished
    card, shown = (out / "README.md").read_text(), command_here("run", "--config", recipe, "-o", out)
    models = summary["evaluation"]["models"]
    for cut, name in zip(summary["cuts"], ("cut-1", "cut-2", "distilled"), strict=True):
        assert cut["perplexity"] == models[name]["perplexity"]
        assert f"| {cut['name']} |" in card
        assert f"{cut['perplexity']:.3f}" in shown.stdout
    scores = load_file(out / "stages" / "cut-2-prune" / "importance.safetensors")["blocks"]
    assert np.allclose(np.diagonal(scores, 1), summary["cuts"][1]["layer_importance"], rtol=1e-5)
    assert f"- importance of each layer before cut-2: {np.diagonal(scores, 1)[0]:.3g}" in card


def test_a_second_run_skips_everything_and_the_run_verifies(finished: Finished) -> None:
    recipe, out, _ = finished
    before = digests(out, ("student", "stages"))
    succeed_here("run", "--config", recipe, "-o", out, "--resume")
    assert digests(out, ("student", "stages")) == before
    checked = {Path(entry["path"]).name for entry in succeed_here("verify", out)["checked"]}
    assert {*NAMES, "student", "evaluate"} <= checked


def test_records_that_contradict_the_cuts_are_found(finished: Finished, tmp_path: Path) -> None:
    _, out, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    check_cuts(copy, "plan.json")
    plan = json.loads((copy / "plan.json").read_text())
    plan["cuts"][0]["shape"]["intermediate_size"] -= 1
    (copy / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(VerificationError, match="another cut than there is"):
        check_cuts(copy, "plan.json")
    (copy / "plan.json").write_text((out / "plan.json").read_text())
    trained = read_artifact(copy / "stages" / "cut-2-distill")
    inputs = {**trained.inputs, "config": {**trained.inputs["config"], "part": 1}}
    replace(trained, inputs=inputs).write()
    with pytest.raises(VerificationError, match="another part of the training"):
        check_cuts(copy, "plan.json")
    pruned = artifact(out, "cut-2-prune")["details"]
    pruned["layer_importance"][0] += 0.01
    with pytest.raises(VerificationError, match="another importance of its layers"):
        check_layer_importance(out / "stages" / "cut-2-prune", pruned)


def test_an_interrupted_run_goes_on_to_the_same_student(finished: Finished, tmp_path: Path) -> None:
    recipe, out, _ = finished
    other = tmp_path / "other"
    shutil.copytree(out, other)
    for name in ("cut-2-distill", "prune", "reconstruct", "distill", "evaluate"):
        shutil.rmtree(other / "stages" / name)
    shutil.rmtree(other / "student")
    succeed_here("run", "--config", recipe, "-o", other)
    student = "student/model.safetensors"
    assert digests(other, [student]) == digests(out, [student])


def test_another_number_of_cuts_is_another_run(finished: Finished) -> None:
    recipe, out, _ = finished
    done = command_here("run", "--config", recipe, "-o", out, "--interleave", 2)
    assert done.returncode == 2
    assert "--restart-from interleave" in done.stderr


def test_a_run_that_is_stopped_in_its_first_training_says_what_it_was(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(interleaving, "DISTILL_PART", replace(interleaving.DISTILL_PART, run=stop))
    recipe, out, summary = finished
    assert command_here("run", "--config", recipe, "-o", tmp_path / "out").returncode == 130
    assert (tmp_path / "out" / "recipe.yaml").read_text() == (out / "recipe.yaml").read_text()
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["cuts"] == summary["plan"]["cuts"]
