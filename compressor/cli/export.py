"""`compress-export export`: write a model for a runtime, and verify what was written."""

from __future__ import annotations

import click

from compressor.choices.formats import options
from compressor.cli.from_recipe import Call, ChoiceOption, RecipeCommand, from_recipe
from compressor.cli.session import Show
from compressor.core.errors import UnsupportedError, UsageError


@click.command(cls=RecipeCommand)
@click.argument("model", required=False)
@click.option(
    "--format",
    "family",
    cls=ChoiceOption,
    choices=lambda: {name: f"{', '.join(precisions)}." for name, precisions in options().items()},
    required=True,
    help="Format to write; the precisions of each are listed below.",
)
@click.option(
    "--precision",
    metavar="NAME",
    help="Precision of the weights; by default the first one that is listed for the format.",
)
@from_recipe("export", but=("export.formats",))
def export(call: Call, show: Show, family: str, precision: str | None) -> None:
    """Export MODEL to --format, and compare the export with it.

    The logits are compared at every position of fixed prompts; if they differ by more than the tolerance, the
    exit code is 8.
    """
    from compressor import api
    from compressor.cli.stage_result import stage

    precisions = options().get(family, {})
    if not precisions:
        raise UsageError(
            f"unknown format {family!r}",
            where="--format",
            expected=", ".join(options()),
            hint="use one of the expected formats",
        )
    precision = precision or next(iter(precisions))
    form = precisions.get(precision)
    if form is None:
        raise UnsupportedError(
            f"format {family} cannot be written in precision {precision}",
            where="--precision",
            expected=", ".join(precisions),
            hint="use one of the expected precisions, or another --format",
        )
    stage(
        call,
        show,
        lambda execution, out_dir: api.export(
            call.recipe.model,
            out_dir,
            form,
            precision=precision,
            settings=call.recipe.export,
            execution=execution,
        ),
    )
