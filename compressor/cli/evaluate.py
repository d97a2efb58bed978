"""`compress-export evaluate`: perplexity of one or more models on the same sequences."""

from __future__ import annotations

import click

from compressor.cli.from_recipe import Call, RecipeCommand, from_recipe
from compressor.cli.session import Show
from compressor.core.errors import UsageError
from compressor.recipe.forms import parse_names


@click.command(cls=RecipeCommand)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--tasks",
    metavar="NAME,...",
    help="Tasks of lm-eval to measure instead of perplexity; needs pip install 'compress-export[lm-eval]'.",
)
@from_recipe("evaluate", own="evaluate")
def evaluate(call: Call, show: Show, models: tuple[str, ...], tasks: str | None) -> None:
    """Measure the perplexity of MODELs on --data, or their scores in --tasks.

    The first MODEL is the baseline. If any MODEL was trained or calibrated on the text, all are evaluated on
    its held-out part.
    """
    from compressor import api
    from compressor.cli.render import evaluation_text
    from compressor.cli.stage_result import stage

    settings = call.recipe.evaluate
    if (settings.data is None) == (tasks is None):
        raise UsageError(
            "evaluate measures either perplexity or tasks",
            hint="give either --data SOURCE or --tasks NAME,...",
        )
    stage(
        call,
        show,
        lambda execution, out_dir: (
            api.evaluate(models, out_dir, settings=settings, execution=execution)
            if tasks is None
            else api.evaluate_tasks(models, out_dir, tasks=parse_names(tasks), execution=execution)
        ),
        text=lambda made: evaluation_text(made.details),
        result=lambda made: made.details,
    )
