"""`compress-export run`: all stages."""

from __future__ import annotations

import click

from compressor.cli.from_recipe import Call, RecipeCommand, from_recipe
from compressor.cli.session import Show

SECTIONS = (
    *("target", "prune", "calibration", "distill", "sparsify", "quantize", "export", "evaluate", "bench"),
)


@click.command(cls=RecipeCommand)
@click.argument("model", required=False)
@click.option("-o", "--output-dir", type=click.Path(), help="Run directory; by default ./MODEL-TARGET[-fp8].")
@click.option(
    "--restart-from", metavar="STAGE", help="Discard the output of this stage and of all later ones first."
)
@click.option("--dry-run", is_flag=True, help="Only show what the run would do.")
@from_recipe(*SECTIONS, output=None)
def run(call: Call, show: Show, restart_from: str | None, dry_run: bool) -> None:  # noqa: FBT001
    """Prune, distill, sparsify, quantize, export, verify and benchmark MODEL; MODEL alone means this.

    \b
    MODEL   alias, Hugging Face id, directory or .gguf file
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
            call.recipe, call.out_dir, restart_from=restart_from, execution=call.execution(console)
        )
    emit(summary.to_json(), show, finished_text(summary))
