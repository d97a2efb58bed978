"""`compress-export cache-logits`: a teacher's logits on disk, for machines that cannot hold both models."""

from __future__ import annotations

import click

from compressor.cli.from_recipe import Call, RecipeCommand, fields_under, from_recipe
from compressor.cli.session import Show
from compressor.recipe.training import TEXT

_OTHERS = ("distill.dynamic_batches", "distill.generate")


@click.command("cache-logits", cls=RecipeCommand)
@click.argument("model", metavar="TEACHER", required=False)
@from_recipe(
    *fields_under("distill", TEXT, but=_OTHERS),
    *("distill.tokens", "distill.context_length", "distill.batch_size", "distill.micro_batch_size"),
    "distill.top_k",
)
def cache_logits(call: Call, show: Show) -> None:
    """Store TEACHER's top-k logits for every training sequence.

    `compress-export distill --teacher-logits DIR` reads them instead of running a teacher.
    """
    from compressor import api
    from compressor.cli.stage_result import stage

    stage(
        call,
        show,
        lambda execution, out_dir: api.cache_logits(
            call.recipe.model, out_dir, settings=call.recipe.distill, execution=execution
        ),
        text=lambda made: (
            f"{made.path}: {made.details['windows']:,} sequences, {made.details['top_k']} tokens per "
            f"position, {made.details['bytes']:,} bytes"
        ),
    )
