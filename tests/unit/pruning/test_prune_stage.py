"""The prune stage by a method that a test adds to the table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor import api
from compressor.choices.importance import IMPORTANCE_METHODS, ImportanceMethod
from compressor.cli.main import invoke
from compressor.core.console import Console
from compressor.core.errors import UsageError
from compressor.pipeline.preflight import require_texts
from compressor.pruning.importance import ImportanceScores, ScoringInputs, random_importance
from compressor.pruning.plan import PLAN_FILE, read_plan
from compressor.recipe.recipe import Calibration, Prune, load_recipe

SHAPE = {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 2}


def from_the_end(inputs: ScoringInputs) -> ImportanceScores:
    """A toy: the last channels and neurons are the most important."""
    assert (inputs.windows is not None) == IMPORTANCE_METHODS["toy"].needs_text
    scores = random_importance(inputs.dims, seed=0)
    units = {axis: torch.arange(found.shape[-1]).expand_as(found) for axis, found in scores.units.items()}
    return ImportanceScores(units=units, blocks=scores.blocks)


@pytest.fixture(params=[True, False], ids=["of text", "without text"])
def toy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ImportanceMethod:
    """One more method, registered in one place."""
    row = ImportanceMethod(
        name="toy",
        help="A method that a test brings along.",
        code=f"{__name__}:from_the_end",
        needs_text=request.param,
    )
    monkeypatch.setitem(IMPORTANCE_METHODS, "toy", row)
    return row


def test_a_new_row_is_a_new_method(
    toy: ImportanceMethod, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["prune", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "toy" in shown
    assert toy.help in shown

    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": f"a river {number}"}) for number in range(400)))
    settings = Prune(importance="toy", shape=SHAPE)
    calibration = Calibration(data=str(text), size=2, seq_len=16)
    made = api.prune(str(tiny_checkpoint), tmp_path / "made", settings=settings, calibration=calibration)
    plan = read_plan(made.path / PLAN_FILE)
    assert plan.kept["hidden"] == (tuple(range(16, 64)),)
    assert plan.kept["heads"] == (tuple(range(4)),) * 2
    assert made.details["importance"] == plan.importance == "toy"
    assert ("calibration" in made.details) == toy.needs_text

    text.write_text('{"body": "no text"}')
    recipe = load_recipe(
        None,
        {
            "model": str(tiny_checkpoint),
            "prune.importance": "toy",
            "repair.method": "off",
            "calibration.data": str(text),
            "distill.tokens": 0,
            "evaluate.data": str(tiny_text_of(tmp_path)),
        },
    )
    if toy.needs_text:
        with pytest.raises(UsageError, match=r"text\.jsonl"):
            require_texts(recipe, Console())
    else:
        require_texts(recipe, Console())


def tiny_text_of(directory: Path) -> Path:
    path = directory / "evaluate.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"a stone {number}"}) for number in range(400)))
    return path


def test_the_text_of_saved_scores_counts_as_seen(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path
) -> None:
    calibration = Calibration(data=str(tiny_text), size=2, seq_len=16)
    first = api.prune(
        str(tiny_checkpoint), tmp_path / "first", settings=Prune(shape=SHAPE), calibration=calibration
    )
    again = Prune(shape=SHAPE, scores=str(first.path))
    made = api.prune(str(tiny_checkpoint), tmp_path / "made", settings=again)
    assert first.texts
    assert made.texts == first.texts


def test_saved_scores_of_another_model_of_the_same_shape_are_refused(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path
) -> None:
    calibration = Calibration(data=str(tiny_text), size=2, seq_len=16)
    first = api.prune(
        str(tiny_checkpoint), tmp_path / "first", settings=Prune(shape=SHAPE), calibration=calibration
    )
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.5
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="these scores are of another model"):
        api.prune(str(other), tmp_path / "made", settings=Prune(shape=SHAPE, scores=str(first.path)))
