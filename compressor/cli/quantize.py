"""`compress-export quantize`: FP8 scales by calibration."""

from __future__ import annotations

import click

from compressor.cli.from_recipe import Call, RecipeCommand, from_recipe
from compressor.cli.session import Show


@click.command(cls=RecipeCommand)
@click.argument("model", required=False)
@from_recipe("quantize", "calibration")
def quantize(call: Call, show: Show) -> None:
    """Quantize MODEL to FP8; needs --fp8.

    Writes the 16-bit checkpoint, the calibrated maxima (amax) of all tensors, and the FP8 checkpoint.
    """
    from compressor import api
    from compressor.cli.stage_result import stage

    recipe = call.recipe
    stage(
        call,
        show,
        lambda execution, out_dir: api.quantize(
            recipe.model,
            out_dir,
            settings=recipe.quantize,
            calibration=recipe.calibration,
            execution=execution,
        ),
    )
