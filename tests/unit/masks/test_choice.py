"""What is refused before masks are learned, what decides their training, and how a budget is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compressor import api
from compressor.cli.main import invoke
from compressor.core.errors import CompressExportError, UnsupportedError, UsageError
from compressor.masks.choice import require_mask_choices, require_maskable
from compressor.masks.learn_stage import LEARN, learn_config
from compressor.models.dims import dims_of_config, flops_per_token
from compressor.models.presets import PRESETS
from compressor.pipeline.consistency import require_consistent
from compressor.planning.cost import training_phases
from compressor.planning.mask_schedule import mask_schedule
from compressor.recipe.recipe import Distill, LearnedMasks, Prune, load_recipe
from tests.tiny_models import make_model

LEARNED = Prune(importance="learned-masks", shape={"intermediate_size": 96})


@pytest.mark.parametrize(
    ("prune", "masks", "where"),
    [
        (Prune(), LearnedMasks(tokens=99), "masks.tokens"),
        (
            Prune(importance="random"),
            LearnedMasks(kind="deterministic", kl_weight=1),
            "masks.kind, masks.kl_weight",
        ),
        (LEARNED.model_copy(update={"depth": "scattered"}), LearnedMasks(), "prune.depth"),
        (LEARNED.model_copy(update={"scores": "there"}), LearnedMasks(), "prune.scores"),
        (LEARNED.model_copy(update={"batch_aggregation": "var"}), LearnedMasks(), "prune.batch_aggregation"),
        (LEARNED, LearnedMasks(weights="frozen", weight_learning_rate=1e-3), "--mask-weight-learning-rate"),
    ],
)
def test_choices_without_effect_are_refused(prune: Prune, masks: LearnedMasks, where: str) -> None:
    require_mask_choices(Prune(), LearnedMasks())
    require_mask_choices(LEARNED, LearnedMasks(weights="frozen", tokens=99))
    with pytest.raises(UsageError) as caught:
        require_mask_choices(prune, masks)
    assert caught.value.where == where


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    require_mask_choices(Prune(), LearnedMasks())
    with pytest.raises(UnsupportedError, match="one process only"):
        require_mask_choices(LEARNED, LearnedMasks())


def test_a_student_with_fewer_key_value_heads_is_refused() -> None:
    """The published shapes of Llama 2, which has a key/value head for every query head."""
    source, student = PRESETS["llama2-7b"].dims, PRESETS["sheared-1.3b"].dims
    require_maskable(source, source.with_shape(num_hidden_layers=4, hidden_size=64))
    with pytest.raises(UnsupportedError, match="keep every key/value head") as caught:
        require_maskable(source, student)
    assert (caught.value.expected, caught.value.found) == (32, 16)


def test_a_run_is_refused_before_any_work() -> None:
    named = {"model": "smollm2-135m", "target": "60%", "export.formats": ["huggingface"]}
    require_consistent(load_recipe(None, {**named, "prune.importance": "learned-masks"}))
    with pytest.raises(UsageError, match="no masks are learned"):
        require_consistent(load_recipe(None, {**named, "masks.tokens": 5}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--importance", "learned-masks", "--calib-size", "4"], "masks are learned from the training text"),
        (["--mask-tokens", "100k"], "no masks are learned"),
        (["--train-data", "text.txt"], "no masks are learned"),
        (["--importance", "learned-masks", "--mask-tokens", "9"], "does not fill one training sequence"),
    ],
)
def test_the_command_refuses_options_without_effect(
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    command = ["prune", str(tiny_checkpoint), "--shape", "intermediate_size=96", "-o", str(tmp_path / "out")]
    assert invoke([*command, *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_scoring_does_not_learn(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CompressExportError, match="learned by training"):
        api.prune(str(tiny_checkpoint), tmp_path / "out", settings=LEARNED)


def test_the_command_learns(tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path) -> None:
    options = ["--shape", "intermediate_size=96", "--importance", "learned-masks", "--train-data", tiny_text]
    small = ["--mask-tokens", "64", "--context-length", "16", "--dtype", "float32", "--report-to", "none"]
    out_dir = tmp_path / "out"
    assert invoke(["prune", *map(str, [tiny_checkpoint, *options, *small, "-o", out_dir])]) == 0
    assert api.verify(out_dir).checked[0].status == "ok"


def test_a_budget_keeps_the_published_steps_with_smaller_batches() -> None:
    distill = Distill(context_length=4096, batch_size=7, warmup_steps=1)
    published = mask_schedule(distill, LearnedMasks())
    assert (published.steps, published.batch_size, published.warmup_steps) == (3200, 32, 320)
    small = mask_schedule(distill, LearnedMasks(tokens=4096 * 6400))
    assert (small.steps, small.batch_size) == (3200, 2)
    chosen = mask_schedule(distill, LearnedMasks(tokens=4096 * 40, batch_size=4))
    assert (chosen.steps, chosen.batch_size, chosen.warmup_steps) == (10, 4, 1)


def test_a_plan_counts_the_training_of_the_whole_model() -> None:
    dims = dims_of_config(make_model().config.to_dict())
    named: dict[str, Any] = {"model": "m", "distill.tokens": 0, "prune.importance": "learned-masks"}
    (phase,) = training_phases(load_recipe(None, named), dims, dims.with_shape(intermediate_size=96), 8)
    assert (phase.name, phase.tokens) == ("prune", 3200 * 32 * 4096)
    assert phase.flops_per_token == 3 * flops_per_token(dims, 2048)
    (compared,) = training_phases(load_recipe(None, {**named, "masks.kl_weight": 1}), dims, dims, 8)
    assert compared.flops_per_token == 4 * flops_per_token(dims, 2048)


def test_what_changes_bytes_is_in_the_fingerprint_and_nothing_else() -> None:
    dims = dims_of_config(make_model().config.to_dict())

    def content(**changes: Any) -> dict[str, object]:
        recipe = load_recipe(
            None, {"model": "m", **{name.replace("__", "."): v for name, v in changes.items()}}
        )
        return LEARN.content(learn_config(dims, recipe.masks, recipe.distill))

    base = content()
    decide: dict[str, Any] = {
        "masks__tokens": 5,
        "masks__kind": "deterministic",
        "masks__weights": "frozen",
        "masks__learning_rate": 0.5,
        "masks__weight_learning_rate": 0.5,
        "masks__target_warmup": 0.5,
        "masks__kl_weight": 0.5,
        "masks__batch_size": 3,
        "distill__data": "x",
        "distill__context_length": 9,
        "distill__dynamic_batches": {"variant": "clipped"},
    }
    for name, value in decide.items():
        assert content(**{name: value}) != base, name
    others = {"tokens": 7, "batch_size": 3, "learning_rate": 0.5, "save_steps": 3, "kl_weight": 0.5}
    for name, value in others.items():
        assert content(**{f"distill__{name}": value}) == base, name
