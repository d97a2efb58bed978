"""`compress-export distill`: retrain a student on its teacher's logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compressor.cli.options import OUTPUT, common, recipe_overrides, training


@click.command()
@click.argument("model", metavar="STUDENT")
@click.option("--teacher", required=True, help="MODEL to distill from.")
@OUTPUT
@training
@common
def distill(output_dir: str, **flags: Any) -> None:
    """Retrain STUDENT by forward KL on the logits of a teacher."""
    from compressor.cli.render import stage_text
    from compressor.cli.session import emit, work
    from compressor.errors import UsageError
    from compressor.recipe import load_recipe

    recipe = load_recipe(None, recipe_overrides(flags))
    if recipe.distill.tokens == 0:
        raise UsageError("a distillation needs tokens", where="--tokens", expected="at least one window")
    with work(flags) as console:
        from compressor.cli.stage_command import execute_stage, open_model, result_of
        from compressor.distillation.stage import DISTILL

        student = open_model(flags["model"], Path(output_dir), flags)
        teacher = open_model(flags["teacher"], Path(output_dir), flags)
        artifact = execute_stage(
            DISTILL, recipe.distill, student, Path(output_dir), flags, console, teacher=teacher
        )
    emit(result_of(artifact), flags, stage_text(artifact))
