"""Targets by outcome as they are written: on the command line and in a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.core.errors import UsageError
from compressor.recipe.recipe import dump_recipe, load_recipe


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("speedup", "2x", 2.0),
        ("speedup", "1.5", 1.5),
        ("memory", "6GiB", 6 * 2**30),
        ("memory", "1.5 gib", 3 * 2**29),
        ("memory", "800MB", 800_000_000),
        ("latency", "20ms", 0.02),
        ("latency", "0.5s", 0.5),
        ("latency", "250us", 0.00025),
    ],
)
def test_values_are_read_with_their_units(tmp_path: Path, field: str, text: str, value: float) -> None:
    recipe = load_recipe(None, {"model": "m", f"outcome.{field}": text})
    assert recipe.outcome.goals == {field: pytest.approx(value)}
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.yaml", {}) == recipe


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("speedup", "1x"),
        ("speedup", "2ms"),
        ("speedup", "-2x"),
        ("speedup", "twice"),
        ("memory", "0GiB"),
        ("memory", "6"),
        ("memory", "6 parsecs"),
        ("latency", "20"),
        ("latency", "0ms"),
        ("latency", "nans"),
    ],
)
def test_other_values_are_refused_with_the_flag(field: str, text: str) -> None:
    flags = {f"outcome.{field}": f"--target-{field}"}
    with pytest.raises(UsageError) as caught:
        load_recipe(None, {"model": "m", f"outcome.{field}": text}, flags=flags)
    assert caught.value.where == f"--target-{field}"


@pytest.mark.parametrize(
    ("name", "value"), [("target", "60%"), ("prune.shape", "hidden_size=48"), ("outcome.latency", "5ms")]
)
def test_a_size_on_the_command_line_replaces_the_recipes_outcome(
    tmp_path: Path, name: str, value: str
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("model: m\noutcome: {speedup: 2x, batch_size: 3}\n")
    recipe = load_recipe(file, {name: value})
    assert "speedup" not in recipe.outcome.goals
    assert recipe.outcome.batch_size == 3
    file.write_text("model: m\ntarget: 60%\n")
    assert load_recipe(file, {"outcome.speedup": "2x"}).target is None
