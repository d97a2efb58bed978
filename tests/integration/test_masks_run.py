"""A run whose student is chosen by learned masks, from the recipe to `verify`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.command import SHAPE, succeed_here, write_recipe


def test_a_run_learns_its_masks_and_is_verified(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "masks.yaml",
        *(tiny_checkpoint, tiny_text),
        prune={"importance": "learned-masks"},
        masks={"tokens": 320, "batch_size": 2},
        distill={"tokens": 320},
        export={"formats": ["huggingface"]},
    )
    out = tmp_path / "out"
    summary = succeed_here("run", "--config", recipe, "-o", out)
    assert list(summary["evaluation"]["models"]) == ["teacher", "pruned", "reconstructed", "distilled"]
    config = json.loads((out / "student" / "config.json").read_text())
    assert {name: config[name] for name in SHAPE} == SHAPE
    record = json.loads((out / "stages" / "prune" / "artifact.json").read_text())
    assert record["details"]["importance"] == "learned-masks"
    assert record["details"]["schedule"]["max_steps"] == 5
    succeed_here("verify", out)
    again = succeed_here("run", "--config", recipe, "-o", out)
    assert again["exports"] == summary["exports"]
