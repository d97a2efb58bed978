"""Saved scores are looked for when a run is planned, long before one reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.core.errors import UsageError
from compressor.models.presets import PRESETS
from compressor.planning.plan import make_plan
from compressor.recipe.recipe import load_recipe
from compressor.search.stages import scores_config

SMOLLM = PRESETS["smollm2-135m"].dims


def test_scores_that_are_not_there_end_no_run_later(tmp_path: Path) -> None:
    recipe = load_recipe(None, {"model": "x", "target": "60%", "prune.scores": str(tmp_path)})
    with pytest.raises(UsageError, match="there are no saved scores"):
        make_plan(recipe, SMOLLM)


@pytest.mark.parametrize("search", [{}, {"search.candidates": 2}], ids=["one shape", "a search"])
def test_how_saved_scores_would_be_measured_has_no_effect(tmp_path: Path, search: dict[str, int]) -> None:
    (tmp_path / "importance.safetensors").touch()
    given = {"model": "x", "target": "60%", "prune.scores": str(tmp_path), **search}
    make_plan(load_recipe(None, given), SMOLLM)
    with pytest.raises(UsageError, match="saved scores are not measured again") as caught:
        make_plan(load_recipe(None, {**given, "prune.batch_aggregation": "var"}), SMOLLM)
    assert caught.value.where == "prune.batch_aggregation"


def test_other_saved_scores_make_another_search(tmp_path: Path) -> None:
    recipe = load_recipe(None, {"model": "x", "target": "60%", "prune.scores": str(tmp_path)})
    (tmp_path / "importance.safetensors").write_text("one")
    before = scores_config(recipe).content()
    (tmp_path / "importance.safetensors").write_text("another")
    assert scores_config(recipe).content() != before
