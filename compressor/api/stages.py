"""One function per stage: it reads models, writes one directory, and returns the record of it.

Every function takes a model (alias, Hugging Face id, directory or .gguf file) and the section of the recipe
that it is about, and runs nothing that is in `out_dir` already. What is heavy is imported when it is called.
"""

from __future__ import annotations

from pathlib import Path

from compressor.api.execution import SCRATCH, Execution, require
from compressor.choices.samplers import SAMPLERS
from compressor.choices.sparsity import SPARSITY_METHODS
from compressor.recipe.recipe import (
    Calibration,
    Distill,
    Generate,
    LearnedMasks,
    Prune,
    Quantize,
    Recipe,
    Sparsify,
)
from compressor.runs.artifact import ModelArtifact, read_artifact


def prune(
    model: str,
    out_dir: Path,
    *,
    target: str | None = None,
    plan: Path | None = None,
    settings: Prune = Prune(),
    calibration: Calibration = Calibration(),
    execution: Execution | None = None,
) -> ModelArtifact:
    """Cut a smaller checkpoint out of a model.

    The `target` is a size or a published shape, else `settings` name a shape. A `plan` is a prune_plan.json
    of this model that may have been edited: its units are kept and none are scored.

    Raises:
        UsageError: a target or a plan that does not fit the model, or both.
    """
    from compressor.masks.choice import learns_masks
    from compressor.models.source import resolve_source, source_dims
    from compressor.planning.depth import require_removal
    from compressor.planning.plan import make_plan, require_prunable
    from compressor.pruning.plan import read_plan
    from compressor.pruning.prune_stage import PRUNE, PruneStageConfig, saved_scores, stage_config
    from compressor.pruning.rotation import rotation_of

    execution = execution or Execution()
    what, hint = "this importance is learned by training", "call learn_masks"
    learns = plan is None and learns_masks(settings)
    require(not learns, what, where="prune.importance", hint=hint)
    teacher = source_dims(resolve_source(model))
    require_prunable(teacher)
    if plan is None:
        recipe = Recipe(model=model, target=target, prune=settings, calibration=calibration)
        resolved = make_plan(recipe, teacher)
        require_removal(settings, teacher, [resolved.student.dims])
        execution.console.info(resolved.rule)
        config = stage_config(resolved.student.dims, settings, calibration)
    else:
        hint = "leave out --plan, or --target and the options of importance and shape"
        chosen = target is not None or settings != Prune()
        require(not chosen, "--plan already says what is kept", where="--plan", hint=hint)
        kept = read_plan(plan)
        hint = f"prune a model of these dimensions: {kept.source}"
        require(kept.source == teacher, "this plan is for another model", where=str(plan), hint=hint)
        rotation_of(plan.parent, kept)  # refused before any work
        beside = str(plan.parent.absolute())
        config = PruneStageConfig(
            shape={}, prune=settings, calibration=calibration, plan=kept, plan_directory=beside
        )
    return execution.run_on(model, out_dir, PRUNE, config, others=saved_scores(settings))


def learn_masks(
    model: str,
    out_dir: Path,
    *,
    target: str | None = None,
    settings: Prune,
    masks: LearnedMasks = LearnedMasks(),
    training: Distill = Distill(),
    execution: Execution | None = None,
) -> ModelArtifact:
    """Prune a model by masks that are trained to the student's shape.

    Args:
        model: What is pruned.
        out_dir: Where the student is written.
        target: A size or a published shape, else `settings` name a shape.
        settings: Their importance is learned masks.
        masks: How these are learned.
        training: On which text; its token budget, batch and learning rate are not used.
        execution: How the stage runs.

    Raises:
        UsageError: for a target that does not fit the model, or choices without effect.
    """
    from compressor.masks.choice import require_mask_choices, require_maskable
    from compressor.masks.learn_stage import LEARN, learn_config
    from compressor.models.source import resolve_source, source_dims
    from compressor.planning.plan import make_plan, require_prunable

    execution = execution or Execution()
    require_mask_choices(settings, masks)
    teacher = source_dims(resolve_source(model))
    require_prunable(teacher)
    recipe = Recipe(model=model, target=target, prune=settings, masks=masks, distill=training)
    resolved = make_plan(recipe, teacher)
    execution.console.info(resolved.rule)
    require_maskable(teacher, resolved.student.dims)
    config = learn_config(resolved.student.dims, masks, training)
    return execution.run_on(model, out_dir, LEARN, config, training=training)


def reconstruct(
    student: str,
    out_dir: Path,
    *,
    teacher: str,
    calibration: Calibration = Calibration(),
    steps: int = 0,
    execution: Execution | None = None,
) -> ModelArtifact:
    """Solve the linear layers of a pruned, sparse or quantised model again by least squares.

    Args:
        student: What `prune`, `sparsify` or `quantize` wrote.
        out_dir: Where the repaired checkpoint is written.
        teacher: The model that the student was made from; of a quantised one, the 16-bit model.
        calibration: The text that the layers are fitted and accepted on.
        steps: Gradient steps of attention and MLP of each layer, after that.
        execution: How the stage runs.

    Raises:
        UsageError: for a student of another teacher, or too little text.
        UnsupportedError: for gradient steps of a quantised student.
    """
    from compressor.repair.quantised_stage import (
        RECONSTRUCT_FP8,
        ReconstructFp8StageConfig,
        is_quantised,
    )
    from compressor.repair.reconstruct_stage import RECONSTRUCT, ReconstructStageConfig
    from compressor.repair.requirements import require_plain_steps

    execution = execution or Execution()
    execution.begin(out_dir, [student, teacher], texts=[calibration.data])
    quantised = is_quantised(Path(student))
    if quantised:
        require_plain_steps(steps)
    source = execution.open(student, out_dir)
    taught_by = execution.open(teacher, out_dir, tokenizer=False)
    if quantised:
        fp8 = ReconstructFp8StageConfig(calibration=calibration)
        return execution.run(RECONSTRUCT_FP8, fp8, source, out_dir, teacher=taught_by)
    config = ReconstructStageConfig(calibration=calibration, steps=steps)
    return execution.run(RECONSTRUCT, config, source, out_dir, teacher=taught_by)


def generate(
    model: str, out_dir: Path, *, settings: Generate, execution: Execution | None = None
) -> ModelArtifact:
    """Sample text from a model, usually the teacher, into `out_dir/text.jsonl`.

    Raises:
        UsageError: for settings without tokens.
    """
    from compressor.distillation.generate_stage import GENERATE

    require(settings.tokens, "no text is to be sampled", where="--tokens", hint="add --tokens 100m")
    SAMPLERS[settings.settled().sampler].require_found()
    return (execution or Execution()).run_on(model, out_dir, GENERATE, settings)


def correct_teacher(
    teacher: str, out_dir: Path, *, settings: Distill, execution: Execution | None = None
) -> ModelArtifact:
    """Fine-tune a teacher by cross-entropy on the text that its student will be distilled on."""
    from compressor.distillation.correct_stage import CORRECT

    return (execution or Execution()).run_on(teacher, out_dir, CORRECT, settings, training=settings)


def cache_logits(
    teacher: str, out_dir: Path, *, settings: Distill, execution: Execution | None = None
) -> ModelArtifact:
    """Store the top-k logits of a teacher for every training sequence."""
    from compressor.distillation.logits_stage import LOGITS

    return (execution or Execution()).run_on(teacher, out_dir, LOGITS, settings, training=settings)


def distill(
    student: str,
    out_dir: Path,
    *,
    settings: Distill,
    teacher: str | None = None,
    sparse: Sparsify = Sparsify(),
    execution: Execution | None = None,
) -> ModelArtifact:
    """Retrain a student on the logits of its teacher; a sparse student keeps its mask.

    The teacher is not needed where the settings name stored logits. `sparse` is the loss and the peak of a
    sparse student's training.

    Raises:
        UsageError: without a teacher or tokens, or for settings of another stage.
    """
    from compressor.distillation.distill_stage import DISTILL, STORED_LOGITS
    from compressor.distillation.requirements import require_stored_temperature
    from compressor.models.sparse.record import read_sparsity
    from compressor.sparsity.sparse_finetune import RECOVER, RecoverStageConfig

    execution = execution or Execution()
    stored = settings.teacher_logits
    require(settings.tokens, "distillation needs training tokens", where="--tokens", hint="add --tokens 100m")
    require(
        teacher is not None or stored is not None,
        "distillation needs a teacher",
        where="--teacher",
        hint="add --teacher MODEL, or --teacher-logits DIR",
    )
    refuse_other_stages(settings)
    if stored is not None:
        require_stored_temperature(settings)
    models = [student, *([teacher] if teacher else [])]
    execution.begin(out_dir, models, texts=DISTILL.data(settings), training=settings)
    others = {STORED_LOGITS: read_artifact(Path(stored))} if stored else {}
    source = execution.open(student, out_dir)
    taught_by = execution.open(teacher, out_dir, tokenizer=False) if teacher else None
    if read_sparsity(source.path) is None:
        return execution.run(DISTILL, settings, source, out_dir, teacher=taught_by, others=others)
    refuse_unused_losses(settings)
    execution.console.info("the student is sparse: its mask is kept")
    fixed = sparse.model_copy(update={"method": "sparsegpt"})
    config = RecoverStageConfig(distill=settings, sparsify=fixed)
    return execution.run(RECOVER, config, source, out_dir, teacher=taught_by, others=others)


def sparsify(
    model: str,
    out_dir: Path,
    *,
    settings: Sparsify,
    calibration: Calibration = Calibration(),
    training: Distill = Distill(),
    teacher: str | None = None,
    execution: Execution | None = None,
) -> ModelArtifact:
    """Make a model N:M sparse, with or without training.

    The pattern is by default 2:4. `training` is text and schedule of a method that trains; it distills from
    `teacher`, by default the model itself. Training may start from a model that is sparse already, such as a
    repaired one; it then needs a teacher.

    Raises:
        UsageError: for a method that trains and no tokens, or a sparse model and settings of how to make one.
    """
    from compressor.models.sparse.low_rank import has_adapter
    from compressor.models.sparse.record import read_sparsity
    from compressor.sparsity.sparse_finetune import RECOVER, RecoverStageConfig
    from compressor.sparsity.sparsify_stage import SPARSIFY, SparsifyStageConfig

    execution, asked = execution or Execution(), settings
    settings = settings.model_copy(update={"pattern": settings.pattern or "2:4"})
    config = SparsifyStageConfig(sparsify=settings, calibration=calibration)
    if not SPARSITY_METHODS[settings.method].trains:
        return execution.run_on(model, out_dir, SPARSIFY, config)
    trained = RecoverStageConfig(distill=training, sparsify=settings)
    tokens = training.tokens if settings.tokens is None else settings.tokens
    require(tokens, f"{settings.method} trains, and needs tokens", where="--tokens", hint="add --tokens 100m")
    refuse_unused_losses(training)
    if (sparsity := read_sparsity(Path(model))) is not None:
        require(teacher, "this model is sparse already", where=model, hint="add --teacher DENSE to train it")
        refuse_another_start(asked, sparsity.pattern, calibration, has_branch=has_adapter(Path(model)))
    texts = (*(() if sparsity else SPARSIFY.data(config)), *RECOVER.data(trained))
    execution.begin(out_dir, [model, *([teacher] if teacher else [])], texts=texts, training=training)
    source = execution.open(model, out_dir)
    taught_by = execution.open(teacher, out_dir, tokenizer=False) if teacher else source
    if sparsity is not None:
        return execution.run(RECOVER, trained, source, out_dir, teacher=taught_by)
    start = out_dir.absolute().parent / SCRATCH / f"{out_dir.name}-one-shot"
    sparse = execution.beside().run(SPARSIFY, config, source, start)
    return execution.run(RECOVER, trained, sparse, out_dir, teacher=taught_by)


def refuse_another_start(
    settings: Sparsify, pattern: object, calibration: Calibration, *, has_branch: bool
) -> None:
    """Refuse settings of how a model is made sparse, for one that is sparse already.

    Raises:
        UsageError: naming them.
    """
    from compressor.sparsity.sparsify_stage import ONE_SHOT_FIELDS

    plain = Sparsify()
    unused = [
        f"sparsify.{name}"
        for name in ONE_SHOT_FIELDS
        if name not in ("pattern", "method", "slorb") and getattr(settings, name) != getattr(plain, name)
    ]
    if settings.pattern not in (None, str(pattern)):
        unused.append("sparsify.pattern")
    if settings.slorb != "off" and not has_branch:
        unused.append("sparsify.slorb")
    unused += ["calibration"] if calibration != Calibration() else []
    require(
        not unused,
        f"the model is {pattern} sparse already, and its training starts from what it has",
        where=", ".join(unused),
        hint="leave these options out, or start from the dense model",
    )


def quantize(
    model: str,
    out_dir: Path,
    *,
    settings: Quantize,
    calibration: Calibration = Calibration(),
    execution: Execution | None = None,
) -> ModelArtifact:
    """Calibrate FP8 scales; writes the 16-bit checkpoint, all amax values and the FP8 checkpoint.

    Raises:
        UsageError: for settings that quantize nothing.
        DependencyError: for an FP8 cache that the installed ModelOpt cannot write.
    """
    from compressor.quantization.fp8 import QUANTIZE, QuantizeStageConfig
    from compressor.quantization.requirements import require_cache_scales

    require(settings.fp8, "no quantization is chosen", where="--fp8", hint="add --fp8")
    require_cache_scales(settings)
    config = QuantizeStageConfig(quantize=settings, calibration=calibration)
    return (execution or Execution()).run_on(model, out_dir, QUANTIZE, config)


def refuse_other_stages(settings: Distill) -> None:
    """Refuse what is a stage of its own, and in a run comes before distillation.

    Raises:
        UsageError: naming it.
    """
    require(
        settings.correction.mode != "first",
        "distill does not correct the teacher first; correct-teacher does",
        where="--teacher-correction first",
        hint="run `compress-export correct-teacher MODEL -o DIR`, then distill with --teacher DIR",
    )
    require(
        not settings.generate.tokens,
        "distill does not sample text; generate does",
        where="--generate-tokens",
        hint="run `compress-export generate MODEL -o DIR`, then add --domain generated=DIR/text.jsonl",
    )


def refuse_unused_losses(settings: Distill) -> None:
    """Refuse choices about the loss that the training of a sparse model does not follow.

    Raises:
        UsageError: naming them.
    """
    from compressor.sparsity.sparse_finetune import FOLLOWED_LOSSES

    followed = {f"distill.{name}" for name in FOLLOWED_LOSSES}
    unused = [name for name in settings.loss_choices() if name not in followed]
    require(
        not unused,
        "these options have no effect on the training of a sparse model",
        where=", ".join(unused),
        hint="leave them out; --recovery-kl-weight and --recovery-temperature set the loss",
    )
