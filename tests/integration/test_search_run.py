"""A run that searches for its shape: the winner is what is pruned, exported, reported and verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compressor.search.trials import SearchWork
from tests.integration.command import command_here, digests, succeed_here, write_recipe

Finished = tuple[Path, Path, dict[str, Any]]  # a run's recipe, its directory and its summary
SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    directory = tmp_path_factory.mktemp("searched")
    recipe = write_recipe(
        directory / "recipe.yaml",
        *(tiny_checkpoint, tiny_text),
        prune={"shape": None},
        target="99168",
        search={"candidates": 2, "tokens": 256},
        distill={"tokens": 256},
        calibration={"size": 4},
        export={"formats": ["huggingface"]},
    )
    return recipe, directory / "out", succeed_here("run", "--config", recipe, "-o", directory / "out")


def test_the_winner_is_the_runs_student(finished: Finished) -> None:
    _, out, summary = finished
    winner = summary["search"]["shapes"][0]
    config = json.loads((out / "student" / "config.json").read_text())
    assert [config[name] for name in SIZES] == [winner["shape"][name] for name in SIZES]
    assert summary["plan"]["student"]["num_parameters"] == winner["num_parameters"]
    assert "lowest loss after repair" in summary["plan"]["rule"]
    assert json.loads((out / "plan.json").read_text()) == summary["plan"]
    assert summary["plan"]["runtime"]["name"] == "none"
    assert summary["plan"]["preflight"] is not None
    losses = {shape["name"]: shape["mean_nll"] for shape in summary["search"]["shapes"]}
    fast = [shape["name"] for shape in summary["search"]["shapes"] if shape["is_fast_enough"]]
    assert winner["name"] == min(fast, key=lambda name: losses[name])


def test_scores_are_measured_once(finished: Finished) -> None:
    _, out, summary = finished
    scores = out / "stages" / "search-scores" / "importance.safetensors"
    assert (out / "stages" / "prune" / "importance.safetensors").read_bytes() == scores.read_bytes()
    pruned = json.loads((out / "stages" / "prune" / "artifact.json").read_text())
    assert "calibration" not in pruned["details"]
    measured = json.loads((scores.parent / "artifact.json").read_text())
    assert set(measured["texts"]) <= set(pruned["texts"])
    assert measured["texts"]
    # The search's trial of the winner and the run's own student begin with the same repair.
    (trial,) = (one for one in summary["search"]["shapes"] if one["rank"] == 1)
    run = summary["evaluation"]["models"]["reconstructed"]["perplexity"]
    assert trial["perplexity_repaired"] == pytest.approx(run, rel=1e-9)


def test_the_card_and_the_terminal_show_every_shape(finished: Finished) -> None:
    recipe, out, summary = finished
    card = (out / "README.md").read_text()
    shown = command_here("run", "--config", recipe, "-o", out)
    for shape in summary["search"]["shapes"]:
        assert f"| {shape['rank']} | {shape['name']} |" in card
        assert shape["name"] in shown.stdout
        assert f"{shape['perplexity']:.2f}" in card


def test_a_second_run_skips_everything_and_the_run_verifies(finished: Finished) -> None:
    recipe, out, summary = finished
    before = digests(out, ("student", "stages"))
    again = succeed_here("run", "--config", recipe, "-o", out, "--resume")
    assert again["search"] == summary["search"]
    assert digests(out, ("student", "stages")) == before
    checked = {Path(entry["path"]).name: entry for entry in succeed_here("verify", out)["checked"]}
    assert checked["search"]["num_shapes_recomputed"] == 2
    assert {"search-scores", *(f"search-{one['name']}" for one in summary["search"]["shapes"])} <= set(
        checked
    )


def test_another_number_of_tokens_is_another_search(finished: Finished) -> None:
    recipe, out, _ = finished
    done = command_here("run", "--config", recipe, "-o", out, "--search-tokens", 512)
    assert done.returncode == 2
    assert "--restart-from search" in done.stderr


def test_a_run_that_is_interrupted_in_its_search_says_what_to_run_again(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out, _ = finished

    def interrupted(work: SearchWork, *_: object) -> None:
        work.scores()
        raise KeyboardInterrupt

    monkeypatch.setattr(SearchWork, "trials", interrupted)
    assert command_here("run", "--config", recipe, "-o", tmp_path / "out").returncode == 130
    assert (tmp_path / "out" / "recipe.yaml").read_bytes() == (out / "recipe.yaml").read_bytes()
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["search"]
