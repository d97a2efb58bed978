"""Which model a part of a run was made from, told by fingerprints; and when none is, why."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from compressor.core.errors import UsageError
from compressor.models.checkpoint import hash_and_check
from compressor.recipe.recipe import Recipe
from compressor.runs.artifact import ModelArtifact
from exporters.checks.origins import Origin, Parts, conversions, is_finished, teacher_of
from tests.unit.exporters.conftest import set_fields


def part(directory: Path, *, stage: str, fingerprint: str = "e", source: str | None) -> Path:
    """A directory with a record and nothing else."""
    directory.mkdir(parents=True, exist_ok=True)
    facts = {"stage": stage, "fingerprint": fingerprint, "lineage": (), "num_parameters": 1}
    inputs = {} if source is None else {"source": source}
    ModelArtifact(path=directory, inputs=inputs, **facts).write()
    return directory


@pytest.fixture
def parts(tiny_checkpoint: Path, tmp_path: Path) -> Parts:
    """A run that pruned, trained and quantised: checkpoints unlike each other."""
    run, teacher = tmp_path / "run", Path(shutil.copytree(tiny_checkpoint, tmp_path / "teacher"))
    sources = {
        ("stages/prune", "prune"): hash_and_check(teacher),
        ("stages/distill", "distill"): "prune of this run",
        ("stages/quantize", "quantize"): "distill of this run",
        ("student", "export-huggingface"): "distill of this run",
    }
    for number, ((place, stage), source) in enumerate(sources.items(), 2):
        shutil.copytree(tiny_checkpoint, run / place)
        set_fields(run / place / "config.json", rms_norm_eps=10.0**-number)
        part(run / place, stage=stage, fingerprint=f"{stage} of this run", source=source)
    return Parts(directory=run, teacher=Origin(path=teacher))


@pytest.mark.parametrize("stage", ["prune", "distill", "quantize"])
@pytest.mark.parametrize("name", ["onnx", "mine", "of-the-teacher-fp8", "onnx-fp8"])
def test_an_export_of_a_stage_is_told_by_its_record_not_its_name(parts: Parts, stage: str, name: str) -> None:
    made = part(parts.directory / "exports" / name, stage="export-x", source=f"{stage} of this run")
    assert parts.origin(made) == Origin(path=parts.directory / "stages" / stage)


@pytest.mark.parametrize("place", ["student", "stages/prune", "stages/distill"])
def test_an_export_made_by_hand_is_told_by_what_the_checkpoint_holds(parts: Parts, place: str) -> None:
    held = hash_and_check(parts.directory / place)
    made = part(parts.directory / "exports/mine", stage="export-onnx", source=held)
    assert parts.origin(made) == Origin(path=parts.directory / place)


def test_an_export_of_the_teacher_is_told_too(parts: Parts) -> None:
    assert parts.teacher.path is not None
    source = hash_and_check(parts.teacher.path)
    made = part(parts.directory / "exports/mine", stage="export-onnx", source=source)
    assert parts.origin(made) == parts.teacher


@pytest.mark.parametrize("source", ["0" * 64, None])
@pytest.mark.parametrize("name", ["mine", "mine-fp8"])
def test_what_no_part_made_says_so(parts: Parts, source: str | None, name: str) -> None:
    made = part(parts.directory / "exports" / name, stage="export-onnx", source=source)
    found = parts.origin(made)
    assert found.path is None
    assert found.reason is not None
    assert "no part of this run" in found.reason


def recipe(model_path: Path) -> Recipe:
    return Recipe.model_validate({"model": str(model_path)})


def test_the_teacher_is_what_lies_where_the_recipe_says(parts: Parts) -> None:
    assert parts.teacher.path is not None
    assert teacher_of(parts.directory, recipe(parts.teacher.path), None) == parts.teacher


@pytest.mark.parametrize("how", ["altered", "other", "emptied", "truncated", "gone"])
def test_a_teacher_that_is_another_model_now_is_none_and_says_why(parts: Parts, how: str) -> None:
    teacher = parts.teacher.path
    assert teacher is not None
    if how == "altered":
        set_fields(teacher / "config.json", eos_token_id=7)
    elif how == "other":
        shutil.rmtree(teacher)
        shutil.copytree(parts.directory / "student", teacher)
    elif how == "truncated":
        weights = teacher / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-10])
    else:
        shutil.rmtree(teacher)
        if how == "emptied":
            teacher.mkdir()
    found = teacher_of(parts.directory, recipe(teacher), None)
    assert found.path is None
    assert found.reason is not None
    assert str(teacher) in found.reason
    assert "--source MODEL" in found.reason


@pytest.mark.parametrize("place", ["student", "nothing"])
def test_another_given_teacher_is_refused(parts: Parts, place: str) -> None:
    (parts.directory / "nothing").mkdir()
    with pytest.raises(UsageError, match=r"not the model|holds no checkpoint"):
        teacher_of(parts.directory, recipe(Path("m")), parts.directory / place)


def test_halves_are_no_conversions(tmp_path: Path, tiny_checkpoint: Path) -> None:
    names = ("a", "a.partial", "a.discarded-0", ".a")
    for name in names:
        made = Path(shutil.copytree(tiny_checkpoint, tmp_path / "stages" / name))
        part(made, stage="source", fingerprint="s", source=None)
    assert [path.name for path in conversions(tmp_path)] == ["a"]
    assert [name for name in names if is_finished(tmp_path / "stages" / name)] == ["a"]
