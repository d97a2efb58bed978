"""`compress-export reconstruct`: repair a pruned or sparse model before it is trained."""

from __future__ import annotations

import click

from compressor.cli.from_recipe import Call, RecipeCommand, from_recipe
from compressor.cli.session import Show


@click.command(cls=RecipeCommand)
@click.argument("model", required=False)
@click.option(
    "--teacher", metavar="MODEL", required=True, help="Model that MODEL was pruned or made sparse from."
)
@from_recipe("calibration")
def reconstruct(call: Call, show: Show, teacher: str) -> None:
    """Repair MODEL, which was pruned or made sparse, without training.

    Every linear layer is solved again by least squares, so that its outputs on the calibration text come as
    close as possible to the teacher's. A layer changes only where that lowers the error on calibration
    sequences that were held out of the fit. The shape, and the zeros of a sparse model, stay.
    """
    from compressor import api
    from compressor.cli.stage_result import stage

    recipe = call.recipe
    stage(
        call,
        show,
        lambda execution, out_dir: api.reconstruct(
            recipe.model, out_dir, teacher=teacher, calibration=recipe.calibration, execution=execution
        ),
    )
