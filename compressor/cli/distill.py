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
@click.option("--teacher", default=None, help="MODEL to distill from; not needed with --teacher-logits.")
@OUTPUT
@click.option("--config", type=click.Path(), default=None, help="Recipe in YAML; flags override it.")
@training
@distillation
@common
def distill(output_dir: str, config: str | None, **flags: Any) -> None:
    """Retrain STUDENT by forward KL on the logits of a teacher; a sparse STUDENT keeps its mask."""
    from compressor.cli.render import stage_text
    from compressor.cli.session import emit, work
    from compressor.core.errors import UsageError
    from compressor.recipe.recipe import Section, load_recipe

    recipe = load_recipe(Path(config) if config else None, recipe_overrides(flags))
    flags |= {name: getattr(recipe, name) for name in ("seed", "device", "dtype", "trust_remote_code")}
    if recipe.distill.tokens == 0:
        raise UsageError("a distillation needs tokens", where="--tokens", expected="at least one window")
    if flags["teacher"] is None and recipe.distill.teacher_logits is None:
        raise UsageError("distillation needs a teacher", hint="--teacher MODEL, or --teacher-logits DIR")
    refuse_other_stages(recipe.distill)
    with work(flags) as console:
        from compressor.cli.cheap_checks import check_early
        from compressor.cli.stage_command import execute_stage, open_model, result_of
        from compressor.distillation.distill_stage import DISTILL, STORED_LOGITS
        from compressor.models.sparse.record import read_promise
        from compressor.runs.artifact import read_artifact
        from compressor.runs.stage import Stage
        from compressor.sparsity.sparse_finetune import RECOVER, RecoverStageConfig

        out_dir, stored = Path(output_dir), recipe.distill.teacher_logits
        models = [recipe.model, *([flags["teacher"]] if flags["teacher"] else [])]
        texts = DISTILL.data(recipe.distill)
        check_early(out_dir, flags, console, models=models, texts=texts, training=recipe.distill)
        others = {STORED_LOGITS: read_artifact(Path(stored))} if stored else {}
        student = open_model(recipe.model, out_dir, flags)
        teacher = open_model(flags["teacher"], out_dir, flags) if flags["teacher"] else None
        stage: Stage[Any] = DISTILL
        settings: Section = recipe.distill
        if read_promise(student.path) is not None:
            console.info("the student is sparse: its mask is held")
            _refuse_dense_options(flags)
            changes: dict[str, Any] = {"method": "sparsegpt"}
            if flags["temperature"] is not None:
                changes["temperature"] = flags["temperature"]
            held = recipe.sparsify.model_copy(update=changes)
            stage, settings = RECOVER, RecoverStageConfig(distill=recipe.distill, sparsify=held)
        artifact = execute_stage(
            stage, settings, student, out_dir, flags, console, teacher=teacher, others=others
        )
    emit(result_of(artifact), flags, stage_text(artifact))


def _refuse_dense_options(flags: dict[str, Any]) -> None:
    """Refuse options that the training of a sparse student does not know."""
    from compressor.cli.training_options import DISTILLATION_FIELDS
    from compressor.core.errors import UsageError

    given = [name for name in DISTILLATION_FIELDS if flags[name] not in (None, "off")]
    if given:
        raise UsageError(
            "a sparse student is trained by KL and cross-entropy on logits, and by nothing else",
            where=", ".join(f"--{name.replace('_', '-')}" for name in given),
            hint="sparsify.kl_weight in a recipe weighs the two",
        )


def refuse_other_stages(settings: Any) -> None:
    """Refuse what is a stage of its own, and in a run comes before this one.

    Raises:
        UsageError: naming it.
    """
    from compressor.core.errors import UsageError

    if settings.correction.mode == "first":
        raise UsageError(
            "a teacher is corrected before distillation, by a stage of its own",
            where="--teacher-correction first",
            hint="compress-export correct-teacher MODEL -o DIR, then --teacher DIR",
        )
    if settings.generate.tokens:
        raise UsageError(
            "text is sampled before distillation, by a stage of its own",
            where="--generate-tokens",
            hint="compress-export generate MODEL -o DIR, then --domain generated=DIR/text.jsonl",
        )
