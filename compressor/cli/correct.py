"""`compress-export correct-teacher`: fine-tune a teacher on the distillation text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compressor.cli.options import OUTPUT, common, recipe_overrides
from compressor.cli.sections import SectionedCommand
from compressor.cli.training_options import training


@click.command("correct-teacher", cls=SectionedCommand)
@click.argument("model", metavar="TEACHER")
@OUTPUT
@click.option("--config", type=click.Path(), default=None, help="Recipe in YAML; flags override it.")
@training
@common
def correct(output_dir: str, config: str | None, **flags: Any) -> None:
    """Fine-tune TEACHER by cross-entropy at a fifth of --learning-rate: teacher correction."""
    from compressor.cli.render import stage_text
    from compressor.cli.session import emit, work
    from compressor.recipe.recipe import load_recipe

    recipe = load_recipe(Path(config) if config else None, recipe_overrides(flags))
    with work(flags) as console:
        from compressor.cli.cheap_checks import check_early
        from compressor.cli.stage_command import execute_stage, open_model, result_of
        from compressor.distillation.correct_stage import CORRECT

        out_dir, settings = Path(output_dir), own_flags(recipe.distill, flags)
        texts = CORRECT.data(settings)
        check_early(out_dir, flags, console, models=[recipe.model], texts=texts, training=settings)
        source = open_model(recipe.model, out_dir, flags)
        artifact = execute_stage(CORRECT, settings, source, out_dir, flags, console)
    emit(result_of(artifact), flags, stage_text(artifact))


def own_flags(settings: Any, flags: dict[str, Any]) -> Any:
    """A recipe's settings where what was given on the command line goes before its correction section."""
    given = {name: getattr(settings, name) for name in ("tokens", "warmup_steps") if flags[name] is not None}
    if flags["learning_rate"] is not None:
        given["learning_rate"] = None  # a fifth of the one given
    correction = settings.correction.model_copy(update=given)
    return settings.model_copy(update={"correction": correction})
