"""`compress-export correct-teacher`: fine-tune a teacher on the distillation text."""

from __future__ import annotations

import click

from compressor.cli.from_recipe import Call, RecipeCommand, fields_under, from_recipe
from compressor.cli.session import Show
from compressor.recipe.recipe import Distill
from compressor.recipe.training import SCALE, SCHEDULE, TEXT

_OTHERS = ("distill.dynamic_batches", "distill.generate")


@click.command("correct-teacher", cls=RecipeCommand)
@click.argument("model", metavar="TEACHER", required=False)
@from_recipe(*fields_under("distill", SCHEDULE, TEXT, SCALE, but=_OTHERS))
def correct_teacher(call: Call, show: Show) -> None:
    """Fine-tune TEACHER by cross-entropy on the text that its student will be distilled on.

    The peak learning rate is a fifth of --learning-rate, and --warmup-steps is by default 120.
    """
    from compressor import api
    from compressor.cli.stage_result import stage

    settings = own_settings(call.recipe.distill, frozenset(call.flags))
    stage(
        call,
        show,
        lambda execution, out_dir: api.correct_teacher(
            call.recipe.model, out_dir, settings=settings, execution=execution
        ),
    )


def own_settings(settings: Distill, given: frozenset[str]) -> Distill:
    """A recipe's settings, where options go before its correction section."""
    own = {name: getattr(settings, name) for name in ("tokens", "warmup_steps") if f"distill.{name}" in given}
    if "distill.learning_rate" in given:
        own["learning_rate"] = None  # a fifth of the one given
    return settings.model_copy(update={"correction": settings.correction.model_copy(update=own)})
