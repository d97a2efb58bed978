"""The commands of single stages: each names a function of `compressor.api`, and what it takes of a recipe."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from compressor.choices.formats import options
from compressor.choices.sparsity import SPARSITY_METHODS
from compressor.cli.from_recipe import (
    Call,
    ChoiceOption,
    Work,
    fields_under,
    from_recipe,
    stage_command,
)
from compressor.core.errors import UnsupportedError, UsageError
from compressor.recipe.training import SCALE, SCHEDULE, TEXT, Distill

# What training by one text alone does not read.
_OF_DISTILLATION = ("distill.dynamic_batches", "distill.generate")
_TRAINING = fields_under("distill", SCHEDULE, TEXT, SCALE, but=("distill.generate",))
_OF_SPARSE_TRAINING = (
    *_TRAINING,
    *("sparsify.tokens", "sparsify.learning_rate", "sparsify.kl_weight", "sparsify.temperature"),
    *("sparsify.mask_interval", "sparsify.mask_decay", "sparsify.decay_ramp_steps"),
)
# What the training of masks reads of distillation's text and course.
_OF_MASK_TRAINING = tuple(
    f"distill.{name}"
    for name in (
        *("data", "domains", "loss_on", "context_length", "intra_document_masking", "dynamic_batches"),
        *(
            "micro_batch_size",
            "min_learning_rate_ratio",
            "activation_checkpointing",
            "report_to",
            "save_steps",
        ),
    )
)


@from_recipe("target", "prune", "calibration", "masks", *_OF_MASK_TRAINING)
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the units listed in this prune_plan.json of the same model, which may be edited, instead of "
    "scoring them.",
)
@stage_command()
def prune(call: Call, plan_file: Path | None) -> Work:
    """Prune MODEL to a target size or shape.

    Writes a Hugging Face checkpoint and prune_plan.json, the list of what was kept. --importance
    learned-masks trains on --train-data; the other methods only calibrate.
    """
    from compressor import api

    recipe = call.recipe
    learns = plan_file is None and recipe.mask_tokens() > 0
    if plan_file is not None or (recipe.prune.scores and not recipe.prune.reads_text):
        why = "--plan says what is kept" if plan_file is not None else "--scores were measured before"
        _refuse_calibration(call, why)
    unread = "calibration." if learns else ("distill.", "masks.")
    unused = [flag for name, flag in call.flags.items() if name.startswith(unread)]
    if unused:
        raise UsageError(
            "masks are learned from the training text, so these options have no effect"
            if learns
            else "no masks are learned, so these options have no effect",
            where=", ".join(unused),
            hint="leave them out" if learns else "leave them out, or use --importance learned-masks",
        )
    if learns:
        return partial(
            api.learn_masks,
            recipe.model,
            target=recipe.target,
            settings=recipe.prune,
            masks=recipe.masks,
            training=recipe.distill,
        )
    return partial(
        api.prune,
        recipe.model,
        target=recipe.target,
        plan=plan_file,
        settings=recipe.prune,
        calibration=recipe.calibration,
    )


def _refuse_calibration(call: Call, why: str) -> None:
    """Refuse options about a text that is not read."""
    unread = [flag for name, flag in call.flags.items() if name.startswith("calibration.")]
    if unread:
        raise UsageError(
            f"{why}, so no calibration text is read and these options have no effect",
            where=", ".join(unread),
            hint="leave them out",
        )


@from_recipe("calibration", "repair.steps")
@click.option(
    "--teacher",
    metavar="MODEL",
    required=True,
    help="Model that MODEL was pruned or made sparse from; of a quantized MODEL, the 16-bit model it was.",
)
@stage_command(
    text=lambda made: (
        f"{made.path}: {made.details['num_accepted']} linear layers fitted again, "
        f"{made.details['num_left']} left as they were"
    )
)
def reconstruct(call: Call, teacher: str) -> Work:
    """Repair MODEL, which was pruned, made sparse or quantized, without training.

    Every linear layer is fitted again by least squares, so that its outputs on the calibration text come as
    close as possible to the teacher's. A layer changes only where that lowers the error on calibration
    sequences that were held out of the fit. The shape, and the zeros of a sparse model, stay. In a directory
    of `quantize`, the FP8 weights are fitted, for inputs that are rounded too.
    """
    from compressor import api

    recipe = call.recipe
    return partial(
        api.reconstruct,
        recipe.model,
        teacher=teacher,
        calibration=recipe.calibration,
        steps=recipe.repair.steps,
    )


@from_recipe("distill.generate", own="distill.generate", but=("distill.generate.weight",))
@stage_command(
    text=lambda made: (
        f"{made.path / 'text.jsonl'}: {made.details['tokens']:,} tokens in "
        f"{made.details['samples']:,} samples"
    )
)
def generate(call: Call) -> Work:
    """Sample text from MODEL, usually the teacher, and write it to DIR/text.jsonl; needs --tokens.

    The file can be given to `compress-export distill --train-data`.
    """
    from compressor import api

    return partial(api.generate, call.recipe.model, settings=call.recipe.distill.generate)


@from_recipe(
    *fields_under("distill", SCHEDULE, TEXT, SCALE, but=(*_OF_DISTILLATION, "distill.warmup_ratio")),
    model="TEACHER",
)
@stage_command()
def correct_teacher(call: Call) -> Work:
    """Fine-tune TEACHER by cross-entropy on the text that its student will be distilled on.

    The peak learning rate is a fifth of --learning-rate.
    """
    from compressor import api

    settings = own_settings(call.recipe.distill, frozenset(call.flags))
    return partial(api.correct_teacher, call.recipe.model, settings=settings)


def own_settings(settings: Distill, given: frozenset[str]) -> Distill:
    """A recipe's settings, where options go before its correction section."""
    own = {name: getattr(settings, name) for name in ("tokens", "warmup_steps") if f"distill.{name}" in given}
    if "distill.learning_rate" in given:
        own["learning_rate"] = None  # a fifth of the one given
    return settings.model_copy(update={"correction": settings.correction.model_copy(update=own)})


@from_recipe(
    *fields_under("distill", TEXT, but=_OF_DISTILLATION),
    *("distill.tokens", "distill.context_length", "distill.batch_size", "distill.micro_batch_size"),
    "distill.top_k",
    model="TEACHER",
)
@stage_command(
    text=lambda made: (
        f"{made.path}: {made.details['windows']:,} sequences, {made.details['top_k']} tokens per position, "
        f"{made.details['bytes']:,} bytes"
    )
)
def cache_logits(call: Call) -> Work:
    """Store TEACHER's top-k logits for every training sequence.

    `compress-export distill --teacher-logits DIR` reads them instead of running a teacher.
    """
    from compressor import api

    return partial(api.cache_logits, call.recipe.model, settings=call.recipe.distill)


@from_recipe(
    "distill",
    *("sparsify.learning_rate", "sparsify.kl_weight", "sparsify.temperature"),
    but=("distill.generate", "distill.correction.tokens", "distill.correction.warmup_steps"),
    model="STUDENT",
)
@click.option("--teacher", metavar="MODEL", help="Model to distill from; not needed with --teacher-logits.")
@stage_command()
def distill(call: Call, teacher: str | None) -> Work:
    """Retrain STUDENT on the logits of a teacher; a sparse STUDENT keeps its mask.

    For a sparse STUDENT, --recovery-learning-rate, --recovery-kl-weight and --recovery-temperature replace
    --learning-rate, --kl-weight and --temperature.
    """
    from compressor import api

    recipe = call.recipe
    return partial(
        api.distill, recipe.model, settings=recipe.distill, teacher=teacher, sparse=recipe.sparsify
    )


@from_recipe(
    "sparsify", "calibration", *(name for name in _OF_SPARSE_TRAINING if name.startswith("distill."))
)
@click.option("--teacher", metavar="MODEL", help="Model that ast distills from; by default MODEL itself.")
@stage_command()
def sparsify(call: Call, teacher: str | None) -> Work:
    """Make the linear layers of MODEL's decoder sparse, 2:4 unless --sparsity says otherwise.

    Writes a checkpoint and its masks. --sparsity-method ast trains, and updates the mask during training; the
    other methods only calibrate. To train with a fixed mask, give the output to `compress-export distill`;
    with ast and --teacher, MODEL may be sparse already, and its training starts from there.
    """
    from compressor import api

    recipe = call.recipe
    unused = [flag for name, flag in call.flags.items() if name in _OF_SPARSE_TRAINING]
    if not SPARSITY_METHODS[recipe.sparsify.method].trains and (unused or teacher):
        raise UsageError(
            f"{recipe.sparsify.method} does not train, so these options have no effect",
            where=", ".join([*unused, *(["--teacher"] if teacher else [])]),
            hint="leave them out, or use --sparsity-method ast",
        )
    return partial(
        api.sparsify,
        recipe.model,
        settings=recipe.sparsify,
        calibration=recipe.calibration,
        training=recipe.distill,
        teacher=teacher,
    )


@from_recipe("quantize", "calibration")
@stage_command()
def quantize(call: Call) -> Work:
    """Quantize MODEL to FP8; needs --fp8.

    Writes the 16-bit checkpoint, the calibrated maxima (amax) of all tensors, and the FP8 checkpoint.
    """
    from compressor import api

    recipe = call.recipe
    return partial(api.quantize, recipe.model, settings=recipe.quantize, calibration=recipe.calibration)


@from_recipe("export", but=("export.formats",))
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
@stage_command()
def export(call: Call, family: str, precision: str | None) -> Work:
    """Export MODEL to --format, and compare the export with it.

    The logits are compared at every position of fixed prompts; if they differ by more than the tolerance, the
    exit code is 8.
    """
    from compressor import api

    precisions = options().get(family, {})
    if not precisions:
        raise UsageError(
            f"unknown format {family!r}",
            where="--format",
            expected=", ".join(options()),
            hint="use one of the expected formats",
        )
    precision = precision or next(iter(precisions))
    if precision not in precisions:
        raise UnsupportedError(
            f"format {family} cannot be written in precision {precision}",
            where="--precision",
            expected=", ".join(precisions),
            hint="use one of the expected precisions, or another --format",
        )
    recipe, form = call.recipe, precisions[precision]
    return partial(api.export, recipe.model, form=form, precision=precision, settings=recipe.export)
