"""`compress-export prune`: cut a smaller checkpoint out of a model."""

from __future__ import annotations

from pathlib import Path

import click

from compressor.cli.from_recipe import ENVIRONMENT, Call, RecipeCommand, from_recipe
from compressor.cli.session import Show
from compressor.core.errors import UsageError


@click.command(cls=RecipeCommand)
@click.argument("model", required=False)
@click.option(
    "--plan",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep what this prune_plan.json says, which may be edited, instead of a target and importance.",
)
@from_recipe("target", "prune", "calibration")
def prune(call: Call, show: Show, plan: Path | None) -> None:
    """Prune MODEL to a target size or shape; writes a Hugging Face checkpoint and the prune plan."""
    from compressor import api
    from compressor.cli.stage_result import stage

    recipe = call.recipe
    unused = [flag for name, flag in call.flags.items() if name not in ENVIRONMENT]
    if plan is not None and unused:
        raise UsageError(
            "a plan says what is kept, so these options have no effect",
            where=", ".join(unused),
            hint="leave them out, or --plan",
        )
    stage(
        call,
        show,
        lambda execution, out_dir: (
            api.prune(
                recipe.model,
                out_dir,
                target=recipe.target,
                settings=recipe.prune,
                calibration=recipe.calibration,
                execution=execution,
            )
            if plan is None
            else api.prune_by_plan(recipe.model, out_dir, plan=plan, execution=execution)
        ),
    )
