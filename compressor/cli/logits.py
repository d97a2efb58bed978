"""`compress-export cache-logits`: a teacher's logits on disk, for machines that cannot hold both models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compressor.cli.options import OUTPUT, common, recipe_overrides
from compressor.cli.parsing import Count
from compressor.cli.sections import SectionedCommand
from compressor.cli.training_options import training


@click.command("cache-logits", cls=SectionedCommand)
@click.argument("model", metavar="TEACHER")
@click.option("--top-k", type=Count(1), default=None, help="Tokens kept per position. [1024]")
@OUTPUT
@click.option("--config", type=click.Path(), default=None, help="Recipe in YAML; flags override it.")
@training
@common
def logits(output_dir: str, config: str | None, **flags: Any) -> None:
    """Store TEACHER's likeliest tokens for every training window: distill --teacher-logits DIR."""
    from compressor.cli.session import emit, work
    from compressor.recipe.recipe import load_recipe

    recipe = load_recipe(Path(config) if config else None, recipe_overrides(flags))
    with work(flags) as console:
        from compressor.cli.cheap_checks import check_early
        from compressor.cli.stage_command import execute_stage, open_model, result_of
        from compressor.distillation.logits_stage import LOGITS

        out_dir = Path(output_dir)
        texts = LOGITS.data(recipe.distill)
        check_early(out_dir, flags, console, models=[recipe.model], texts=texts, training=recipe.distill)
        source = open_model(recipe.model, out_dir, flags)
        artifact = execute_stage(LOGITS, recipe.distill, source, out_dir, flags, console)
    details = artifact.details
    text = f"{artifact.path}: {details['windows']:,} windows, {details['top_k']} tokens per position"
    emit(result_of(artifact), flags, f"{text}, {details['bytes']:,} bytes")
