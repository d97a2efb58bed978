"""A record of measured removals that contradicts itself, its plan or its stage is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor import api
from compressor.core.errors import VerificationError
from compressor.recipe.recipe import Prune, Recipe
from exporters.checks.depth import check_depth
from exporters.checks.documents import check_recipe

LOSSES = {1: (5.0, 4.0, 4.5, 6.0), 2: (7.0, 6.5, 8.0)}


def measured(loss: float, accuracy: float | None = None) -> dict[str, Any]:
    return {"loss": loss, "accuracy": accuracy}


def record(**fields: Any) -> dict[str, Any]:
    curves = [
        {"size": size, "without": [measured(loss) for loss in losses]} for size, losses in LOSSES.items()
    ]
    return {
        "schema": "compress-export/depth/1",
        "importance": "loss",
        "removal": "contiguous",
        "num_layers": 4,
        "seq_len": 8,
        "num_sequences": 2,
        "num_questions": 0,
        "whole": measured(3.0),
        "curves": curves,
        "removals": [],
        "removed_layers": [1, 2],
        **fields,
    }


def details(without: float = 6.5, removed: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    depth = {"importance": "loss", "whole": measured(3.0), "without": measured(without)}
    return {"removed_layers": list(removed), "depth": depth}


GREEDY = {
    "removal": "scattered",
    "removals": [{"layer": 1, "without": measured(4.0)}, {"layer": 3, "without": measured(5.5)}],
    "removed_layers": [1, 3],
}


def write(directory: Path, content: dict[str, Any]) -> Path:
    (directory / "depth.json").write_text(json.dumps(content))
    return directory


def test_a_sound_record_passes(tmp_path: Path) -> None:
    assert check_depth(write(tmp_path, record()), details()) == {"num_measured_removals": 7}
    assert check_depth(write(tmp_path, record(**GREEDY)), details(5.5, (1, 3))) == {
        "num_measured_removals": 7
    }


def test_accuracy_decides_before_the_loss(tmp_path: Path) -> None:
    found = record(num_questions=4)
    for place, accuracy in enumerate((0.5, 0.25, 0.5)):
        found["curves"][1]["without"][place]["accuracy"] = accuracy
    found["removed_layers"] = [0, 1]
    said = details(7.0, (0, 1))
    said["depth"]["without"]["accuracy"] = 0.5
    check_depth(write(tmp_path, found), said)


def test_nothing_was_measured(tmp_path: Path) -> None:
    assert check_depth(tmp_path, {"removed_layers": [1]}) == {}


def swap(found: dict[str, Any]) -> None:
    without = found["curves"][1]["without"]
    without[1], without[2] = without[2], without[1]


FAULTS: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any]], object], str]] = {
    "another block": ({}, lambda found: found.update(removed_layers=[2, 3]), "other layers"),
    "a curve of other losses": ({}, swap, "another block"),
    "a position less": ({}, lambda found: found["curves"][0]["without"].pop(), "wrong length"),
    "no curve of the block": ({}, lambda found: found["curves"].pop(), "not measured"),
    "another first layer": (GREEDY, lambda found: found["removals"].reverse(), "another single layer"),
    "other layers one by one": (
        GREEDY,
        lambda found: found["removals"][1].update(layer=2),
        "one by one",
    ),
    "another loss of the whole": ({}, lambda found: found.update(whole=measured(2.0)), "other figures"),
    "an unknown field": ({}, lambda found: found.update(speed=1), "not what was written"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_contradiction_is_refused(fault: str, tmp_path: Path) -> None:
    fields, change, message = FAULTS[fault]
    found = record(**json.loads(json.dumps(fields)))
    change(found)
    said = details(5.5, (1, 3)) if fields else details()
    with pytest.raises(VerificationError, match=message):
        check_depth(write(tmp_path, found), said)


def test_a_missing_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VerificationError):
        check_depth(tmp_path, details())


def test_a_recipe_that_measures_is_not_the_one_of_a_student_by_influence(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings = Prune(importance="random", shape={"num_hidden_layers": 2})
    made = api.prune(str(tiny_checkpoint), tmp_path / "out", settings=settings)
    recipe = Recipe(model=str(tiny_checkpoint), prune=settings)
    check_recipe(tmp_path / "recipe.yaml", recipe, made)
    other = recipe.model_copy(update={"prune": settings.model_copy(update={"depth_importance": "loss"})})
    with pytest.raises(VerificationError, match="depth_importance"):
        check_recipe(tmp_path / "recipe.yaml", other, made)
