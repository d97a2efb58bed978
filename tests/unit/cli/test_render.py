"""What the terminal shows."""

from __future__ import annotations

from pathlib import Path

from compressor.cli.render import plan_text
from compressor.models.presets import PRESETS
from compressor.models.source import plan_dims
from compressor.planning.plan import make_plan
from compressor.recipe.recipe import load_recipe


def test_one_sequence_is_no_sequences_and_every_cut_is_named() -> None:
    settings = {"distill.tokens": 2 * 4096, "distill.batch_size": 1, "interleave.cuts": 2}
    recipe = load_recipe(None, {"model": "llama3.1-8b", "target": "4b-width", **settings})
    shown = plan_text(make_plan(recipe, PRESETS["llama3.1-8b"].dims))
    assert "  cut-1-distill: 4,096 tokens, 1 step of 1 sequence of 4,096, " in shown
    assert "  distill: 4,096 tokens, 1 step of 1 sequence of 4,096, " in shown
    without = plan_text(make_plan(recipe, PRESETS["llama3.1-8b"].dims), costs=False)
    assert shown.startswith(without)
    assert "from scratch" not in without
    assert "cut-1         32x3520x11520x32, 5,949,423,040 parameters, then 4,096 tokens" in shown
    assert "cut-2         32x3072x9216x32, 4,512,746,496 parameters, then 4,096 tokens" in shown


def test_a_plan_of_a_tiny_model_shows_its_sizes(tiny_checkpoint: Path) -> None:
    recipe = load_recipe(
        None, {"model": str(tiny_checkpoint), "prune.shape": "num_hidden_layers=2", "distill.tokens": 4096}
    )
    shown = plan_text(make_plan(recipe, plan_dims(str(tiny_checkpoint))))
    assert "KiB" in shown
    assert "0.00 GiB" not in shown
    assert shown.splitlines()[0] == f"{tiny_checkpoint} to an explicit shape"
