"""`compress-export run`: all stages."""

from __future__ import annotations

from dataclasses import replace

import click

from compressor.cli.from_recipe import Call, RecipeCommand, from_recipe
from compressor.cli.session import Show

SECTIONS = (
    *("target", "prune", "calibration", "distill", "sparsify", "quantize", "export", "evaluate", "bench"),
)


@click.command(cls=RecipeCommand)
@click.argument("model", required=False)
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(),
    help="Directory of the run; by default ./MODEL-TARGET, or ./MODEL-TARGET-fp8 with --fp8.",
)
@click.option(
    "--restart-from",
    metavar="STAGE",
    help="Delete the output of this stage, such as distill, and of all later stages, and run them again.",
)
@click.option("--dry-run", is_flag=True, help="Show what the run would do, without doing it.")
@from_recipe(*SECTIONS, output=None)
def run(call: Call, show: Show, restart_from: str | None, dry_run: bool) -> None:  # noqa: FBT001
    """Prune, distill, sparsify, quantize, export, verify and benchmark MODEL.

    MODEL is an alias such as llama3.1-8b, a Hugging Face id, a directory or a .gguf file. The word `run` may
    be left out.

    For example:

    \b
      compress-export llama3.1-8b --target 4b --fp8
      compress-export ./my-model --target 60% --train-data corpus.jsonl --tokens 100m -o out
    """
    from compressor import api
    from compressor.cli.render import finished_text, planned_text
    from compressor.cli.session import emit, work

    made = api.plan(call.recipe, call.out_dir)
    if dry_run:
        emit(made.to_json(), show, planned_text(made))
        return
    with work(show, call.recipe.device) as console:
        console.info(planned_text(made))
        summary = api.run(
            call.recipe,
            call.out_dir,
            restart_from=restart_from,
            execution=replace(call.execution, console=console),
        )
    emit(summary.to_json(), show, finished_text(summary))
