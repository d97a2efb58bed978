"""What a run is measured on."""

from __future__ import annotations

from pathlib import Path

from compressor.data.sources import source_fingerprint
from compressor.preflight import evaluation_config
from compressor.recipe import load_recipe


def test_a_text_that_the_model_was_made_with_is_measured_on_its_held_out_part(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.txt" for name in ("train", "evaluate", "prompts")}
    for name, file in files.items():
        file.write_text(name)
    recipe = load_recipe(
        None,
        {
            "model": "smollm2-135m",
            "calibration.data": str(files["train"]),
            "distill.data": str(files["train"]),
            "evaluate.data": str(files["evaluate"]),
        },
    )
    assert evaluation_config(recipe).split == "all"
    assert evaluation_config(recipe, (source_fingerprint(str(files["evaluate"])),)).split == "held_out"
    files["evaluate"].write_text("train")
    assert evaluation_config(recipe).split == "held_out"
