"""`compress-export distill`: retrain a student on its teacher's logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compressor.cli.options import OUTPUT, common, recipe_overrides
from compressor.cli.sections import SectionedCommand
from compressor.cli.training_options import distillation, training


@click.command(cls=SectionedCommand)
@click.argument("model", metavar="STUDENT")
@click.option("--teacher", required=True, help="MODEL to distill from.")
@OUTPUT
@click.option("--config", type=click.Path(), default=None, help="Recipe in YAML; flags override it.")
@training
@distillation
@common
def distill(output_dir: str, config: str | None, **flags: Any) -> None:
    """Retrain STUDENT by forward KL on the logits of a teacher; a sparse STUDENT keeps its mask."""
    from compressor.cli.render import stage_text
    from compressor.cli.session import emit, work
    from compressor.errors import UsageError
    from compressor.recipe import Section, load_recipe

    recipe = load_recipe(Path(config) if config else None, recipe_overrides(flags))
    flags |= {name: getattr(recipe, name) for name in ("seed", "device", "dtype", "trust_remote_code")}
    if recipe.distill.tokens == 0:
        raise UsageError("a distillation needs tokens", where="--tokens", expected="at least one window")
    with work(flags) as console:
        from compressor.cli.stage_command import execute_stage, open_model, result_of
        from compressor.distillation.recover import RECOVER, RecoverStageConfig
        from compressor.distillation.stage import DISTILL
        from compressor.sparsity.promise import read_promise
        from compressor.stage import Stage

        student = open_model(flags["model"], Path(output_dir), flags)
        teacher = open_model(flags["teacher"], Path(output_dir), flags)
        stage: Stage[Any] = DISTILL
        settings: Section = recipe.distill
        if read_promise(student.path) is not None:
            console.info("the student is sparse: its mask is held")
            changes: dict[str, Any] = {"method": "sparsegpt"}
            if flags["temperature"] is not None:
                changes["temperature"] = flags["temperature"]
            held = recipe.sparsify.model_copy(update=changes)
            stage, settings = RECOVER, RecoverStageConfig(distill=recipe.distill, sparsify=held)
        artifact = execute_stage(stage, settings, student, Path(output_dir), flags, console, teacher=teacher)
    emit(result_of(artifact), flags, stage_text(artifact))
