"""`compress-export sparsify`: N:M sparsity, at once or with training."""

from __future__ import annotations

import click

from compressor.choices.sparsity import SPARSITY_METHODS
from compressor.cli.from_recipe import Call, RecipeCommand, fields_under, from_recipe
from compressor.cli.session import Show
from compressor.core.errors import UsageError
from compressor.recipe.training import SCALE, SCHEDULE, TEXT

_OF_TRAINING = (
    *fields_under("distill", SCHEDULE, TEXT, SCALE, but=("distill.generate",)),
    *("sparsify.tokens", "sparsify.learning_rate", "sparsify.kl_weight", "sparsify.temperature"),
    *("sparsify.mask_interval", "sparsify.mask_decay", "sparsify.decay_ramp_steps"),
)


@click.command(cls=RecipeCommand)
@click.argument("model", required=False)
@click.option("--teacher", metavar="MODEL", help="Model that ast distills from; by default MODEL itself.")
@from_recipe("sparsify", "calibration", *(name for name in _OF_TRAINING if name.startswith("distill.")))
def sparsify(call: Call, show: Show, teacher: str | None) -> None:
    """Make the linear layers of MODEL's decoder sparse, 2:4 unless --sparsity says otherwise.

    Writes a checkpoint and its masks. --sparsity-method ast trains, and updates the mask during training; the
    other methods only calibrate. To train with a fixed mask, give the output to `compress-export distill`.
    """
    from compressor import api
    from compressor.cli.stage_result import stage

    recipe = call.recipe
    unused = [flag for name, flag in call.flags.items() if name in _OF_TRAINING]
    if not SPARSITY_METHODS[recipe.sparsify.method].trains and (unused or teacher):
        raise UsageError(
            f"{recipe.sparsify.method} does not train, so these options have no effect",
            where=", ".join([*unused, *(["--teacher"] if teacher else [])]),
            hint="leave them out, or use --sparsity-method ast",
        )
    stage(
        call,
        show,
        lambda execution, out_dir: api.sparsify(
            recipe.model,
            out_dir,
            settings=recipe.sparsify,
            calibration=recipe.calibration,
            training=recipe.distill,
            teacher=teacher,
            execution=execution,
        ),
    )
