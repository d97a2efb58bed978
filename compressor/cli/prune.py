"""`compress-export prune`: cut a smaller checkpoint out of a model."""

from __future__ import annotations

from pathlib import Path

import click

from compressor.cli.from_recipe import Call, RecipeCommand, from_recipe
from compressor.cli.session import Show


@click.command(cls=RecipeCommand)
@click.argument("model", required=False)
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the units listed in this prune_plan.json of the same model, which may be edited, instead of "
    "scoring them.",
)
@from_recipe("target", "prune", "calibration")
def prune(call: Call, show: Show, plan_file: Path | None) -> None:
    """Prune MODEL to a target size or shape.

    Writes a Hugging Face checkpoint and prune_plan.json, the list of what was kept.
    """
    from compressor import api
    from compressor.cli.stage_result import stage

    recipe = call.recipe
    stage(
        call,
        show,
        lambda execution, out_dir: api.prune(
            recipe.model,
            out_dir,
            target=recipe.target,
            plan=plan_file,
            settings=recipe.prune,
            calibration=recipe.calibration,
            execution=execution,
        ),
    )
