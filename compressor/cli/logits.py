"""`compress-export logits`: a teacher's logits on disk, for machines that cannot hold both models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compressor.cli.options import OUTPUT, common, recipe_overrides
from compressor.cli.sections import SectionedCommand
from compressor.cli.training_options import training


@click.command(cls=SectionedCommand)
@click.argument("model", metavar="TEACHER")
@click.option("--top-k", type=click.IntRange(1), default=None, help="Tokens kept per position. [1024]")
@OUTPUT
@click.option("--config", type=click.Path(), default=None, help="Recipe in YAML; flags override it.")
@training
@common
def logits(output_dir: str, config: str | None, **flags: Any) -> None:
    """Store TEACHER's likeliest tokens for every training window: distill --teacher-logits DIR."""
    from compressor.cli.session import emit, work
    from compressor.recipe import load_recipe

    recipe = load_recipe(Path(config) if config else None, recipe_overrides(flags))
    with work(flags) as console:
        from compressor.cli.stage_command import execute_stage, open_model, require_training_texts, result_of
        from compressor.distillation.logits_stage import LOGITS

        require_training_texts(recipe.distill, console)
        source = open_model(flags["model"], Path(output_dir), flags)
        artifact = execute_stage(LOGITS, recipe.distill, source, Path(output_dir), flags, console)
    details = artifact.details
    text = f"{artifact.path}: {details['windows']:,} windows, {details['top_k']} tokens per position"
    emit(result_of(artifact), flags, f"{text}, {details['bytes']:,} bytes")
