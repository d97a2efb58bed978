"""`compress-export export`: write a model for a runtime, and verify what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compressor.choices.formats import FORMATS, options
from compressor.cli.options import OUTPUT, common, parallelism, recipe_overrides


@click.command()
@click.argument("model")
@click.option("--format", "family", type=click.Choice(sorted(options())), required=True)
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16", "fp8", "int4"]), default=None)
@click.option("--int4-min-top1", type=float, default=None, help="Gate on int4's top-1 agreement.")
@parallelism
@OUTPUT
@common
def export(family: str, precision: str | None, output_dir: str, **flags: Any) -> None:
    """Export MODEL and compare every position's logits with it; beyond the tolerance, exit code 8."""
    from compressor.cli.render import stage_text
    from compressor.cli.session import emit, work
    from compressor.core.errors import UnsupportedError
    from compressor.recipe.recipe import load_recipe

    precisions = options()[family]
    if precision is None:
        precision = next(iter(precisions))
    if precision not in precisions:
        raise UnsupportedError(
            f"{family} is not written in {precision}", where="--precision", expected=", ".join(precisions)
        )
    settings = load_recipe(None, recipe_overrides(flags)).export
    with work(flags) as console:
        from compressor.cli.cheap_checks import check_early
        from compressor.cli.stage_command import (
            execute_stage,
            open_model,
            quantised_artifact,
            refuse_other_dtype,
            result_of,
        )
        from compressor.models.checkpoint import read_config
        from compressor.models.sparse.record import read_promise
        from exporters.export_stage import export_stage
        from exporters.registry import check_exports, exporter_of, require_tools

        name = precisions[precision]
        out_dir = Path(output_dir)
        check_early(out_dir, flags, console, models=[flags["model"]])
        require_tools([name], engine=settings.tensorrt_llm.require_engine)
        if Path(flags["model"]).is_dir():
            model = Path(flags["model"])
            check_exports([name], read_config(model), settings, promise=read_promise(model))
        if FORMATS[name].needs_fp8:
            source = quantised_artifact(flags["model"])
        else:
            source = open_model(flags["model"], out_dir, flags)
            refuse_other_dtype(source, family, precision)
        artifact = execute_stage(
            export_stage(name), exporter_of(name).settings(settings), source, out_dir, flags, console
        )
    emit(result_of(artifact), flags, stage_text(artifact))
