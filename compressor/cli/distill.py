"""`compress-export distill`: retrain a student on its teacher's logits."""

from __future__ import annotations

import click

from compressor.cli.from_recipe import Call, RecipeCommand, from_recipe
from compressor.cli.session import Show


@click.command(cls=RecipeCommand)
@click.argument("model", metavar="STUDENT", required=False)
@click.option("--teacher", metavar="MODEL", help="Model to distill from; not needed with --teacher-logits.")
@from_recipe(
    "distill",
    *("sparsify.learning_rate", "sparsify.kl_weight", "sparsify.temperature"),
    but=("distill.generate", "distill.correction.tokens", "distill.correction.warmup_steps"),
)
def distill(call: Call, show: Show, teacher: str | None) -> None:
    """Retrain STUDENT on the logits of a teacher; a sparse STUDENT keeps its mask.

    For a sparse STUDENT, --recovery-learning-rate, --recovery-kl-weight and --recovery-temperature replace
    --learning-rate, --kl-weight and --temperature.
    """
    from compressor import api
    from compressor.cli.stage_result import stage

    recipe = call.recipe
    stage(
        call,
        show,
        lambda execution, out_dir: api.distill(
            recipe.model,
            out_dir,
            settings=recipe.distill,
            teacher=teacher,
            sparse=recipe.sparsify,
            execution=execution,
        ),
    )
