"""A recipe against what stages recorded: a text is what its fingerprint says, wherever it lies."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compressor.core.errors import VerificationError
from compressor.data.sources import source_fingerprint
from compressor.recipe.recipe import Recipe
from compressor.runs.artifact import ModelArtifact
from exporters.checks.documents import check_recipe
from tests.corruptions.formats import place

ROWS = [{"text": "one row"}, {"text": "another row"}]


def write_plain(path: Path, *, other: bool = False) -> Path:
    path.write_text("running text\n" + "of another kind\n" * other, encoding="utf-8")
    return path


def write_rows(path: Path, *, other: bool = False) -> Path:
    rows = [*ROWS, {"text": "a third row"}] if other else ROWS
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_folder(path: Path, *, other: bool = False) -> Path:
    path.mkdir()
    write_plain(path / "a.txt")
    write_plain(path / "b.txt", other=other)
    return path


# How it is written, under which name it was read, and under which one it is now.
TEXTS: dict[str, tuple[Any, str, str]] = {
    "plain": (write_plain, "text.txt", "moved.md"),
    "rows": (write_rows, "text.jsonl", "moved.jsonl"),
    "packed rows": (write_rows, "text.jsonl", "moved.jsonl.gz"),
    "folder": (write_folder, "texts", "moved"),
}


def tree(text: object, **distill: object) -> dict[str, Any]:
    """A recipe that reads one text in every place where it reads any."""
    domains = [{"name": "first", "data": str(text)}, {"name": "second", "data": str(text), "weight": 2.0}]
    generate = {"tokens": 9, "prompts": str(text), "weight": 3.0}
    return {
        "model": "m",
        "calibration": {"data": str(text)},
        "distill": {"data": str(text), "domains": domains, "generate": generate, **distill},
    }


def stages(recipe: Recipe) -> dict[str, ModelArtifact]:
    """What stages that were run by a recipe record of themselves."""
    plain = recipe.model_dump(mode="json")
    texts = {recipe.calibration.data, recipe.distill.data, *(each.data for each in recipe.distill.domains)}
    inputs = {"seed": recipe.seed, "data": {text: source_fingerprint(text) for text in sorted(texts)}}
    configs = {
        "prune": {"shape": {"hidden_size": 8}, "prune": plain["prune"], "calibration": plain["calibration"]},
        "distill": plain["distill"],
        "recover": {"distill": plain["distill"], "sparsify": plain["sparsify"]},
        "generate": plain["distill"]["generate"],
    }
    others = {"distill": {"generated": "g"}, "recover": {"generated": "g"}}
    return {
        stage: artifact(
            Path(stage), stage, "f", {**inputs, "config": config, "others": others.get(stage, {})}
        )
        for stage, config in configs.items()
    }


def artifact(path: Path, stage: str, fingerprint: str, inputs: dict[str, Any]) -> ModelArtifact:
    return ModelArtifact(
        path=path, stage=stage, fingerprint=fingerprint, lineage=(), num_parameters=1, inputs=inputs
    )


def check(recipe: Recipe, made: dict[str, ModelArtifact]) -> None:
    for each in made.values():
        check_recipe(Path("recipe.yaml"), recipe, each)


@pytest.mark.parametrize("kind", TEXTS)
def test_a_moved_text_is_the_same_text(tmp_path: Path, kind: str) -> None:
    write, name, moved = TEXTS[kind]
    text = write(tmp_path / name)
    made = stages(Recipe.model_validate(tree(text)))
    recipe = Recipe.model_validate(tree(write(tmp_path / moved)))
    check(recipe, made)


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("stage", ["prune", "distill", "recover", "generate"])
def test_another_text_is_another_recipe(tmp_path: Path, kind: str, stage: str) -> None:
    write, name, moved = TEXTS[kind]
    made = stages(Recipe.model_validate(tree(write(tmp_path / name))))
    recipe = Recipe.model_validate(tree(write(tmp_path / moved, other=True)))
    with pytest.raises(VerificationError, match="the recipe is not the one") as caught:
        check(recipe, {stage: made[stage]})
    assert caught.value.where is not None
    assert caught.value.where.startswith("recipe.yaml: ")


@pytest.mark.parametrize("one", ["calibration.data", "distill.domains.1.data", "distill.generate.prompts"])
def test_one_other_text_among_the_same_ones_is_found(tmp_path: Path, one: str) -> None:
    text, moved = write_plain(tmp_path / "text.txt"), write_plain(tmp_path / "moved.txt")
    other = str(write_plain(tmp_path / "other.txt", other=True))
    made = stages(Recipe.model_validate(tree(text)))
    edited = tree(moved)
    section, leaf = place(edited, one)
    section[leaf] = other
    with pytest.raises(VerificationError, match="the recipe is not the one"):
        check(Recipe.model_validate(edited), made)


def test_swapped_texts_are_found(tmp_path: Path) -> None:
    first, second = write_plain(tmp_path / "1.txt"), write_plain(tmp_path / "2.txt", other=True)
    edited = tree(first)
    edited["distill"]["domains"][1]["data"] = str(second)
    made = stages(Recipe.model_validate(edited))
    edited["distill"]["domains"][0]["data"], edited["distill"]["domains"][1]["data"] = str(second), str(first)
    with pytest.raises(VerificationError, match=r"distill\.domains"):
        check(Recipe.model_validate(edited), made)


@pytest.mark.parametrize("named", ["gone.txt", "an/id"])
def test_what_cannot_be_compared_is_refused(tmp_path: Path, named: str) -> None:
    made = stages(Recipe.model_validate(tree(write_plain(tmp_path / "text.txt"))))
    path = str(tmp_path / named) if named.endswith(".txt") else named
    with pytest.raises(VerificationError, match=r"cannot be compared|the recipe is not the one"):
        check(Recipe.model_validate(tree(path)), made)


def test_a_text_that_is_gone_but_named_as_before_is_not_read(tmp_path: Path) -> None:
    text = write_plain(tmp_path / "text.txt")
    recipe = Recipe.model_validate(tree(text))
    made = stages(recipe)
    text.unlink()
    check(recipe, made)


def stored_logits(directory: Path, fingerprint: str) -> Path:
    directory.mkdir()
    artifact(directory, "logits", fingerprint, {}).write()
    return directory


def test_stored_logits_that_were_moved_are_the_same(tmp_path: Path) -> None:
    text = write_plain(tmp_path / "text.txt")
    before, same = stored_logits(tmp_path / "before", "l"), stored_logits(tmp_path / "same", "l")
    other = stored_logits(tmp_path / "other", "k")

    def recipe(place: Path) -> Recipe:
        return Recipe.model_validate(tree(text, teacher_logits=str(place)))

    made = stages(recipe(before))["distill"]
    made.inputs["others"]["teacher_logits"] = "l"
    check_recipe(Path("recipe.yaml"), recipe(before), made)
    check_recipe(Path("recipe.yaml"), recipe(same), made)
    with pytest.raises(VerificationError, match="teacher_logits"):
        check_recipe(Path("recipe.yaml"), recipe(other), made)
    with pytest.raises(VerificationError, match=r"cannot be compared[\s\S]*teacher_logits"):
        check_recipe(Path("recipe.yaml"), recipe(tmp_path / "nowhere"), made)


@pytest.mark.parametrize("name", ["depth_importance", "hidden"])
def test_a_choice_that_is_recorded_only_where_it_was_made_is_compared(tmp_path: Path, name: str) -> None:
    write, file, _ = next(iter(TEXTS.values()))
    recipe = Recipe.model_validate(tree(write(tmp_path / file)))
    pruned = stages(recipe)["prune"]
    del pruned.inputs["config"]["prune"][name]
    pruned = replace(pruned, details={**pruned.details, "removed_layers": [1]})
    check(recipe, {"prune": pruned})
    chosen = {"depth_importance": "loss", "hidden": "rotation"}[name]
    prune = recipe.prune.model_copy(update={name: chosen})
    with pytest.raises(VerificationError, match="the recipe is not the one") as caught:
        check(recipe.model_copy(update={"prune": prune}), {"prune": pruned})
    assert caught.value.where == f"recipe.yaml: prune.{name}"
    if name == "depth_importance":  # of several cuts, this one keeps every layer
        kept = replace(pruned, details={**pruned.details, "removed_layers": []})
        check(recipe.model_copy(update={"prune": prune}), {"prune": kept})
