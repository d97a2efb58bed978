"""`compress-export sparsify`: N:M sparsity, at once or with training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compressor.choices.sparsity import SPARSITY_METHODS
from compressor.cli.options import OUTPUT, calibration, common, recipe_overrides, sparsity
from compressor.cli.sections import SectionedCommand
from compressor.cli.training_options import training


@click.command(cls=SectionedCommand)
@click.argument("model")
@click.option("--teacher", default=None, help="ast: MODEL to distill from. [MODEL itself]")
@OUTPUT
@sparsity
@calibration
@training
@common
def sparsify(output_dir: str, teacher: str | None, **flags: Any) -> None:
    """Make the decoder's linear layers of MODEL 2:4 sparse; writes a checkpoint and its masks.

    ast trains, and selects the mask again on the way; the others calibrate only. To train with the
    mask held, give the output to `compress-export distill`.
    """
    from compressor.cli.render import stage_text
    from compressor.cli.session import emit, work
    from compressor.core.errors import UsageError
    from compressor.recipe.recipe import load_recipe

    flags["sparsity"] = flags["sparsity"] or "2:4"
    flags["recover_temperature"] = flags["temperature"]
    recipe = load_recipe(None, recipe_overrides(flags))
    adaptive = SPARSITY_METHODS[recipe.sparsify.method].trains
    if adaptive and recipe.distill.tokens == 0:
        raise UsageError(
            f"{recipe.sparsify.method} trains", where="--tokens", expected="at least one window", found=0
        )
    out_dir = Path(output_dir)
    with work(flags) as console:
        from compressor.cli.cheap_checks import check_early
        from compressor.cli.stage_command import SCRATCH, execute_stage, open_model, result_of
        from compressor.sparsity.sparse_finetune import RECOVER, RecoverStageConfig
        from compressor.sparsity.sparsify_stage import SPARSIFY, SparsifyStageConfig

        config = SparsifyStageConfig(sparsify=recipe.sparsify, calibration=recipe.calibration)
        training = RecoverStageConfig(distill=recipe.distill, sparsify=recipe.sparsify)
        texts = (*SPARSIFY.data(config), *(RECOVER.data(training) if adaptive else ()))
        models = [recipe.model, *([teacher] if teacher else [])]
        trained_on = recipe.distill if adaptive else None
        check_early(out_dir, flags, console, models=models, texts=texts, training=trained_on)
        source = open_model(recipe.model, out_dir, flags)
        if not adaptive:
            artifact = execute_stage(SPARSIFY, config, source, out_dir, flags, console)
        else:
            start = out_dir.absolute().parent / SCRATCH / f"{out_dir.name}-one-shot"
            began = {**flags, "resume": False}
            sparse = execute_stage(SPARSIFY, config, source, start, began, console)
            opened = open_model(teacher, out_dir, flags) if teacher else source
            artifact = execute_stage(RECOVER, training, sparse, out_dir, flags, console, teacher=opened)
    emit(result_of(artifact), flags, stage_text(artifact))
