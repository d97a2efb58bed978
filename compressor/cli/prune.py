"""`compress-export prune`: cut a smaller checkpoint out of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compressor.cli.options import OUTPUT, calibration, common, recipe_overrides
from compressor.cli.parsing import parse_shape


@click.command()
@click.argument("model")
@click.option("--target", default=None, help="Size (4b, 4.5B, 60%) or published shape (4b-width).")
@click.option("--shape", callback=parse_shape, default=None, help="hidden_size=432,intermediate_size=1024")
@click.option("--importance", type=click.Choice(["activation", "weight-magnitude", "random"]), default=None)
@OUTPUT
@calibration
@common
def prune(output_dir: str, **flags: Any) -> None:
    """Prune MODEL to a target size or shape; writes a Hugging Face checkpoint and the prune plan."""
    from compressor.cli.render import stage_text
    from compressor.cli.session import emit, work
    from compressor.recipe.recipe import load_recipe

    recipe = load_recipe(None, recipe_overrides(flags))
    with work(flags) as console:
        from compressor.cli.cheap_checks import check_early
        from compressor.cli.stage_command import execute_stage, open_model, result_of
        from compressor.models.dims import PRUNABLE_FIELDS
        from compressor.models.load import resolve_source, source_dims
        from compressor.planning.plan import make_plan, require_prunable
        from compressor.pruning.prune_stage import PRUNE, PruneStageConfig

        out_dir = Path(output_dir)
        teacher = source_dims(resolve_source(recipe.model))
        plan = make_plan(recipe, teacher)
        require_prunable(teacher)
        console.info(plan.rule)
        config = PruneStageConfig(
            shape={name: getattr(plan.student.dims, name) for name in PRUNABLE_FIELDS},
            prune=recipe.prune.model_copy(update={"shape": None}),
            calibration=recipe.calibration,
        )
        check_early(out_dir, flags, console, models=[recipe.model], texts=PRUNE.data(config))
        source = open_model(recipe.model, out_dir, flags)
        artifact = execute_stage(PRUNE, config, source, out_dir, flags, console)
    emit(result_of(artifact), flags, stage_text(artifact))
