"""`compress-export generate`: text sampled from a model, to distill on."""

from __future__ import annotations

import click

from compressor.cli.from_recipe import Call, RecipeCommand, from_recipe
from compressor.cli.session import Show


@click.command(cls=RecipeCommand)
@click.argument("model", required=False)
@from_recipe("distill.generate", own="distill.generate", but=("distill.generate.weight",))
def generate(call: Call, show: Show) -> None:
    """Sample text from MODEL, usually the teacher, and write it to DIR/text.jsonl; needs --tokens.

    The file can be given to `compress-export distill --train-data`.
    """
    from compressor import api
    from compressor.cli.stage_result import stage

    recipe = call.recipe
    stage(
        call,
        show,
        lambda execution, out_dir: api.generate(
            recipe.model, out_dir, settings=recipe.distill.generate, execution=execution
        ),
        text=lambda made: (
            f"{made.path / 'text.jsonl'}: {made.details['tokens']:,} tokens in "
            f"{made.details['samples']:,} samples"
        ),
    )
