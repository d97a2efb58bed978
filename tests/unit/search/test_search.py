"""A search of a tiny model: a trial is what single commands do, and nothing is done twice."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compressor import api
from compressor.cli.search import _text, parse_shard
from compressor.core.errors import UsageError, VerificationError
from compressor.recipe.recipe import Prune, Recipe, load_recipe
from compressor.runs.artifact import ModelArtifact, read_artifact, record_files
from compressor.search import stages
from compressor.search.record import SearchRecord
from compressor.search.stages import TRIAL, scores_config
from tests.integration.command import command_here

TARGET = "99168"
NAMES = ("3x48x128x4", "3x64x64x4", "2x64x128x4")
TWO = (NAMES[0], NAMES[2])


def recipe_of(checkpoint: Path, text: Path, **given: Any) -> Recipe:
    return load_recipe(
        None,
        {
            "model": str(checkpoint),
            "target": TARGET,
            "dtype": "float32",
            "search.candidates": 3,
            "search.tokens": 256,
            "calibration.data": str(text),
            "calibration.size": 6,
            "calibration.seq_len": 64,
            "repair.method": "least-squares",
            "distill.data": str(text),
            "distill.context_length": 64,
            "distill.batch_size": 4,
            "distill.learning_rate": 1e-3,
            "evaluate.seq_len": 64,
            "evaluate.size": 4,
            **given,
        },
    )


def of_two(recipe: Recipe) -> Recipe:
    """The same search of two shapes, which are among the three."""
    return recipe.model_copy(update={"search": recipe.search.model_copy(update={"candidates": 2})})


def execution_of(recipe: Recipe, **given: Any) -> api.Execution:
    return api.Execution(environment=recipe, **given)


@pytest.fixture(scope="module")
def recipe(tiny_checkpoint: Path, tiny_text: Path) -> Recipe:
    return recipe_of(tiny_checkpoint, tiny_text)


@pytest.fixture(scope="module")
def searched(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    """One undisturbed search."""
    out = tmp_path_factory.mktemp("search") / "out"
    made = api.search(recipe, out, execution=execution_of(recipe))
    assert isinstance(made, ModelArtifact)
    return made


def trials_of(out: Path) -> Path:
    return out.parent / ".compress-export" / f"{out.name}-search"


def test_a_trial_measures_what_single_commands_measure(
    searched: ModelArtifact, recipe: Recipe, tmp_path: Path
) -> None:
    """One shape by hand, importance measured anew."""
    record = SearchRecord.model_validate(searched.details)
    (one,) = (shape for shape in record.shapes if shape.name == "2x64x128x4")
    how, teacher = execution_of(recipe), recipe.model
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    settings = recipe.prune.model_copy(update={"shape": shape})
    pruned = api.prune(
        teacher, tmp_path / "p", settings=settings, calibration=recipe.calibration, execution=how
    )
    repaired = api.reconstruct(
        str(pruned.path),
        tmp_path / "r",
        teacher=teacher,
        calibration=recipe.repair_calibration(),
        execution=how,
    )
    training = recipe.distill.model_copy(update={"tokens": 256, "report_to": ()})
    distilled = api.distill(
        str(repaired.path), tmp_path / "d", settings=training, teacher=teacher, execution=how
    )
    text = recipe.evaluate.model_copy(update={"data": recipe.distill.data})
    models = (str(repaired.path), str(distilled.path))
    found = api.evaluate(models, tmp_path / "e", settings=text, execution=how).details["models"]
    losses = [model["perplexity"] for model in found.values()]
    assert one.perplexity_repaired == pytest.approx(losses[0], rel=1e-9)
    assert one.perplexity == pytest.approx(losses[1], rel=1e-9)
    assert one.num_parameters == distilled.num_parameters


def test_every_shape_is_ranked_and_no_weights_are_left(searched: ModelArtifact) -> None:
    record = SearchRecord.model_validate(searched.details)
    assert {shape.name for shape in record.shapes} == set(NAMES)
    assert [shape.name for shape in record.shapes if shape.is_default] == [NAMES[0]]
    assert json.loads((searched.path / "search.json").read_text()) == searched.details
    kept = {path.name for path in trials_of(searched.path).rglob("*") if path.is_file()}
    assert kept == {"trial.json", "artifact.json", "importance.safetensors"}


def test_the_terminal_says_how_the_winner_is_taken(searched: ModelArtifact) -> None:
    """Its words make a run of exactly that shape."""
    shown = _text(searched)
    given = shown.partition("--shape ")[2].split()[0]
    taken = load_recipe(None, {"model": "m", "prune.shape": given}).prune.shape
    winner = SearchRecord.model_validate(searched.details).winner.shape
    assert taken is not None
    assert winner.with_shape(**taken) == winner
    assert len(taken) == 4
    assert str(searched.path / "search.json") in shown


def test_a_killed_search_goes_on_with_the_shape_that_it_was_at(
    searched: ModelArtifact, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, done, execute = tmp_path / "out", list[str](), stages.execute

    def watched(stage: Any, config: Any, source: Any, where: Path, context: Any) -> Any:
        shape = where.parent.name.removesuffix(".partial").removeprefix("search-")
        if (shape, stage.name, len(done)) == (TWO[1], "distill", 6):
            raise KeyboardInterrupt
        outcome = execute(stage, config, source, where, context)
        done.append(f"{shape} {stage.name}{' skipped' if outcome.skipped else ''}")
        return outcome

    monkeypatch.setattr(stages, "execute", watched)
    with pytest.raises(KeyboardInterrupt):
        api.search(of_two(recipe), out, execution=execution_of(recipe))
    assert len(done) == 6
    done.clear()
    made = api.search(of_two(recipe), out, execution=execution_of(recipe, resume=True))
    goes_on = ["prune skipped", "reconstruct skipped", "distill", "evaluate"]
    assert done == [f"{TWO[1]} {rest}" for rest in goes_on]
    assert losses_of(made) == {name: losses_of(searched)[name] for name in TWO}


def losses_of(made: object) -> dict[str, float]:
    assert isinstance(made, ModelArtifact)
    return {one.name: one.mean_nll for one in SearchRecord.model_validate(made.details).shapes}


def test_shares_do_their_own_shapes_and_the_last_command_reads_them(
    searched: ModelArtifact, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def share(text: str) -> Any:
        how = execution_of(recipe)
        return api.search(of_two(recipe), out, shard=parse_shard(text), execution=how)

    assert share("2/2") == api.SearchShare(done=TWO[1:], left=TWO[:1])
    assert not out.exists()
    assert share("1/2") == api.SearchShare(done=TWO, left=())
    monkeypatch.setattr(stages, "execute", None)  # nothing is tried again
    made = api.search(of_two(recipe), out, execution=execution_of(recipe))
    assert losses_of(made) == {name: losses_of(searched)[name] for name in TWO}


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"prune.shape": {"hidden_size": 48}, "target": None}, "needs the size"),
        ({"target": None}, "needs the size"),
        ({"target": "80%,60%"}, "one target"),
        ({"search.candidates": None}, "no effect"),
        ({"export.tensorrt_llm.tp_size": 8}, "fewer than two shapes"),
        ({"search.tokens": 63}, "fill one training sequence"),
    ],
    ids=str,
)
def test_a_run_refuses_what_a_search_contradicts(
    given: dict[str, Any], error: str, tiny_checkpoint: Path, tiny_text: Path
) -> None:
    with pytest.raises(UsageError, match=error):
        api.plan(recipe_of(tiny_checkpoint, tiny_text, **given))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--candidates", "1"), "--candidates"),
        (("--shard", "3/2"), "not a share of the work"),
        (("--shard", "0/2"), "not a share of the work"),
        (("--shard", "1/2", "--overwrite"), "a share cannot start over"),
        (("--resume",), "nothing to resume"),
    ],
    ids=" ".join,
)
def test_the_command_refuses_before_any_work(
    options: tuple[str, ...], error: str, tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path
) -> None:
    words = ("--target", TARGET, "--train-data", tiny_text, "--calib-data", tiny_text)
    short = ("--context-length", 64, "--calib-size", 6, "--calib-seq-len", 64)
    done = command_here("search", tiny_checkpoint, *words, *short, "-o", tmp_path / "out", *options)
    assert done.returncode == 2
    assert error in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_published_shape_is_refused() -> None:
    recipe = load_recipe(None, {"model": "llama3.1-8b", "target": "4b", "search.candidates": 4})
    with pytest.raises(UsageError, match="published shape"):
        api.plan(recipe)
    made = api.plan(recipe.model_copy(update={"target": "4512746496"}))
    assert isinstance(made, api.Plan)
    assert made.search is not None
    assert len(made.search.candidates) == 4


def test_the_plan_counts_what_is_left_out(tiny_checkpoint: Path) -> None:
    words = ("plan", tiny_checkpoint, "--target", TARGET, "--search", 3)
    plain = command_here("plan", tiny_checkpoint, "--target", TARGET, "--json")
    planned = json.loads(command_here(*words, "--json").stdout)
    search = planned["search"]
    assert (search["num_shapes"], len(search["candidates"])) == (3, 3)
    assert planned["hours"]["stages"]["search"] == search["hours"] > 0
    use = next(use for use in planned["disk"] if use["stage"] == "search")
    assert use["temporary_bytes"] > 3 * 2 * 99168
    assert json.loads(plain.stdout)["search"] is None
    shown = command_here(*words).stdout
    for found in search["excluded"]:
        assert f"{found['num_shapes']:,}: {found['reason']}" in shown


def test_verify_finds_a_changed_figure(searched: ModelArtifact, recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / searched.path.name
    shutil.copytree(searched.path, out)
    shutil.copytree(trials_of(searched.path), trials_of(out))
    (checked,) = api.verify(out, source=Path(recipe.model)).checked
    assert checked.found["num_shapes_recomputed"] == 3
    api.verify(trials_of(out) / f"search-{NAMES[1]}")
    changes: list[tuple[dict[str, Any], str]] = [
        ({"num_parameters": 99169}, "another size"),
        ({"predicted_speedup": 1.5}, "does not follow"),
        ({"perplexity": 3.0}, "does not follow"),
        ({"mean_nll": 1.0, "perplexity": 2.718281828}, "other figures than the trial"),
        ({"is_on_pareto_front": False}, "place does not follow"),
        ({"name": "3x48x128x5"}, "another's name"),
    ]
    for change, error in changes:
        shapes = [{**searched.details["shapes"][0], **change}, *searched.details["shapes"][1:]]
        rewrite(out, {**searched.details, "shapes": shapes})
        with pytest.raises(VerificationError, match=error):
            api.verify(out, source=Path(recipe.model))
    first, second, third = searched.details["shapes"]
    swapped = [{**second, "rank": 1}, {**first, "rank": 2}, third]
    rewrite(out, {**searched.details, "shapes": swapped})
    with pytest.raises(VerificationError, match="before a better one"):
        api.verify(out)


def rewrite(out: Path, details: dict[str, Any]) -> None:
    """Change the table and everything that records it."""
    (out / "search.json").write_text(json.dumps(details))
    replace(read_artifact(out), details=details, files=record_files(out)).write()


def test_the_short_training_is_the_runs_own_but_short(recipe: Recipe) -> None:
    full = recipe.distill.model_copy(update={"tokens": 1_000_000, "loss": "reverse-kl"})
    search = recipe.search.model_copy(update={"tokens": None})
    assert search.training(full).tokens == 20_000
    assert search.training(full.model_copy(update={"tokens": 0})).tokens == 16 * 64
    assert search.training(full).loss == "reverse-kl"
    assert search.training(full.model_copy(update={"warmup_steps": 40})).warmup_steps is None
    assert TRIAL.data(
        stages.TrialConfig(
            pruning=stages.scores_config(recipe),
            repair=None,
            training=search.training(full),
            evaluation=stages.EvaluateStageConfig(data="other.txt", window=8, size=1),
        )
    ) == (recipe.distill.data, "other.txt")


def test_saved_scores_decide_what_a_search_finds(recipe: Recipe, tmp_path: Path) -> None:
    """Other scores, perhaps in the same place, are another search."""
    (tmp_path / "importance.safetensors").write_bytes(b"scores")
    saved = recipe.model_copy(update={"prune": Prune(scores=str(tmp_path))})
    assert scores_config(saved).scores_sha256 == hashlib.sha256(b"scores").hexdigest()
    assert scores_config(recipe).scores_sha256 is None
    measured = Prune(scores=str(tmp_path), importance="taylor")
    with pytest.raises(UsageError, match="saved scores are not measured again"):
        scores_config(recipe.model_copy(update={"prune": measured}))
