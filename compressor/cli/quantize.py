"""`compress-export quantize`: FP8 scales by calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compressor.cli.options import OUTPUT, calibration, common, recipe_overrides


@click.command()
@click.argument("model")
@click.option("--fp8", is_flag=True, required=True, help="FP8 weights and activations.")
@click.option("--fp8-kv-cache", is_flag=True, default=None, help="FP8 keys and values as well.")
@OUTPUT
@calibration
@common
def quantize(output_dir: str, **flags: Any) -> None:
    """Quantize MODEL; writes the 16-bit checkpoint, all amax values and the unified FP8 checkpoint."""
    from compressor.cli.render import stage_text
    from compressor.cli.session import emit, work
    from compressor.recipe.recipe import load_recipe

    recipe = load_recipe(None, recipe_overrides(flags))
    with work(flags) as console:
        from compressor.cli.cheap_checks import check_early
        from compressor.cli.stage_command import execute_stage, open_model, result_of
        from compressor.quantization.fp8 import QUANTIZE, QuantizeStageConfig

        out_dir = Path(output_dir)
        config = QuantizeStageConfig(quantize=recipe.quantize, calibration=recipe.calibration)
        check_early(out_dir, flags, console, models=[recipe.model], texts=QUANTIZE.data(config))
        source = open_model(recipe.model, out_dir, flags)
        artifact = execute_stage(QUANTIZE, config, source, out_dir, flags, console)
    emit(result_of(artifact), flags, stage_text(artifact))
