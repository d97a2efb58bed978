"""The distill stage: tokenise, train the student on the teacher's logits, save it in 16 bits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from compressor.choices.losses import LOSSES
from compressor.core.errors import UsageError
from compressor.data.mixing import WHOLE, Part
from compressor.data.sources import source_fingerprint
from compressor.distillation.choice import LossChoice, choose_losses, describe
from compressor.distillation.correct_stage import (
    CorrectAlongside,
    correction_learning_rate,
    require_alongside,
)
from compressor.distillation.criterion import LossConfig
from compressor.distillation.domain_losses import held_out_loss
from compressor.distillation.generate_stage import TEXT_FILE
from compressor.distillation.logits_stage import tokenizer_fingerprint
from compressor.distillation.module import DistillationModule
from compressor.distillation.stored_logits import StoredLogits
from compressor.distillation.training import (
    NEUTRAL,
    SCRATCH,
    Training,
    load,
    load_trainable,
    refuse_unfit_teacher,
)
from compressor.distillation.validation import watch_training
from compressor.models.checkpoint import read_config
from compressor.models.sparse.record import read_sparsity
from compressor.models.tokenizer import load_tokenizer
from compressor.recipe.option import content_of, unless_neutral
from compressor.recipe.recipe import Distill, Domain, Interleave, Section
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import Stage, StageContext, StageResult
from compressor.training.dynamic_batches import DynamicBatchLoading, held_out_windows
from compressor.training.extension import TrainingExtension

# Roles of what training may read beside student and teacher.
GENERATED = "generated"
STORED_LOGITS = "teacher_logits"


class DistillPartConfig(Section):
    """The part of a run's distillation that follows one of several cuts, the first being 1."""

    distill: Distill
    interleave: Interleave
    part: int


def run(
    config: Distill, source: ModelArtifact, out_dir: Path, context: StageContext, *, part: Part = WHOLE
) -> StageResult:
    """Distill `source` from the context's teacher, or from its stored logits.

    A `part` of several trains on windows of its own.

    Raises:
        UsageError: without a teacher, or for a sparse student.
        UnsupportedError: when the vocabularies differ.
    """
    if read_sparsity(source.path) is not None:
        raise UsageError(
            "plain distillation would overwrite the zeros of a sparse student",
            where=str(source.path),
            hint="give the sparsified directory to `compress-export distill`, which keeps its mask",
        )
    alongside = config.correction.mode == "alongside"
    if alongside:
        require_alongside(config)
    stored = _stored_logits(config, source)
    _require_teaching(source, stored, context)
    trained = [source, *([context.teacher] if context.teacher and alongside else [])]
    # Before the models are loaded: a text that cannot be tokenised costs no more than that.
    domains = training_domains(config, context)
    training = Training(config, domains, source, out_dir, context, trained=trained, part=part)
    if stored is not None:
        stored.require_windows(training.stream)
    choice = chosen_losses(config, source, context, has_stored_logits=stored is not None)
    teacher = None if stored is not None else _teacher(config, choice.loss, context)
    module = DistillationModule(
        load_trainable(source, context), teacher, choice.loss, corrects_teacher=alongside
    )
    extensions: list[TrainingExtension] = []
    if alongside and teacher is not None:
        extensions.append(CorrectAlongside(teacher, learning_rate=correction_learning_rate(config)))
    dynamic = dynamic_batches(training, module)
    watched = watch_training(training, module)
    log = training.fit_(
        module,
        teacher=None if teacher is None else context.teacher,
        trains_teacher=alongside,
        extensions=[*extensions, *dynamic, *watched.extensions],
        complete=lambda window: window if stored is None else stored.complete(window),
    )
    details = {
        "loss": describe(choice.loss),
        "loss_rule": choice.rule,
        "teacher": _teacher_details(stored, has_teacher=teacher is not None, alongside=alongside),
        **training.save(module, log),
        "forecast": watched.report(),
    }
    for extension in dynamic:
        details["dynamic_batches"] = extension.report()
    return StageResult(num_parameters=source.num_parameters, details=details, scratch=SCRATCH)


def _run_part(
    config: DistillPartConfig, source: ModelArtifact, out_dir: Path, context: StageContext
) -> StageResult:
    part = Part(number=config.part, of=config.interleave.cuts)
    return run(config.interleave.share(config.distill), source, out_dir, context, part=part)


def training_domains(config: Distill, context: StageContext) -> tuple[Domain, ...]:
    """The recipe's domains, and the generated text where there is some."""
    domains = config.mixture()
    generated = context.others.get(GENERATED)
    if generated is None:
        return domains
    text = str(generated.path / TEXT_FILE)
    own = Domain(name=GENERATED, data=text, weight=config.generate.weight, reference_loss=None)
    return (*domains, own)


def chosen_losses(
    config: Distill, source: ModelArtifact, context: StageContext, *, has_stored_logits: bool = False
) -> LossChoice:
    """The losses between a student and its teacher; warns of those that are known to do harm."""
    models = (context.teacher or source, source)
    teacher_layers, student_layers = (read_config(model.path)["num_hidden_layers"] for model in models)
    choice = choose_losses(
        config,
        num_teacher_layers=teacher_layers,
        num_student_layers=student_layers,
        has_stored_logits=has_stored_logits,
    )
    for warning in choice.warnings:
        context.console.warn(warning)
    return choice


def dynamic_batches(training: Training, module: DistillationModule) -> list[DynamicBatchLoading]:
    """Dynamic batch loading over a training's domains, where the recipe asks for it.

    Raises:
        UsageError: for a domain without held-out text, or without a reference where no teacher gives it.
    """
    config, domains = training.config, training.domains
    dynamic = config.dynamic_batches
    if dynamic.variant == "off":
        return []
    references = [domain.reference_loss for domain in domains]
    if module.teacher is None and None in references:
        raise UsageError(
            "dynamic batches compare with a teacher in memory, or with reference losses",
            where="distill.domains[].reference_loss",
            expected="one for every domain",
            hint="give --teacher, set the reference losses, or turn --dynamic-batches off",
        )
    trust = training.context.trust_remote_code
    tokenizer = load_tokenizer(training.source.path, trust_remote_code=trust)
    windows = held_out_windows(domains, tokenizer, size=dynamic.eval_size, seq_len=config.context_length)
    loss = partial(held_out_loss, module, windows, training.plan)
    loading = DynamicBatchLoading(
        training.stream,
        partial(loss, of_teacher=False),
        partial(loss, of_teacher=True),
        references=references,
        variant=dynamic.variant,
        interval_steps=dynamic.interval_steps,
    )
    return [loading]


def _require_teaching(source: ModelArtifact, stored: StoredLogits | None, context: StageContext) -> None:
    """Refuse a student without a teacher, or with one whose logits cannot be compared."""
    if context.teacher is not None:
        refuse_unfit_teacher(source, context.teacher, trust_remote_code=context.trust_remote_code)
    elif stored is None:
        raise UsageError("distillation needs a teacher", hint="add --teacher MODEL, or --teacher-logits DIR")


def _teacher(config: Distill, loss: LossConfig, context: StageContext) -> Any | None:
    """The teacher in the run's dtype, in float32 if it trains too; None where nothing asks for it."""
    assert context.teacher is not None
    if config.correction.mode == "alongside":
        return load(context.teacher, "float32", context)
    if not loss.needs_teacher and config.dynamic_batches.variant == "off":
        return None
    return load(context.teacher, context.dtype, context)


def _stored_logits(config: Distill, source: ModelArtifact) -> StoredLogits | None:
    """The store that the recipe names, if it is over this student's windows and vocabulary."""
    if config.teacher_logits is None:
        return None
    stored = StoredLogits(Path(config.teacher_logits))
    stored.require(
        vocab_size=read_config(source.path)["vocab_size"],
        seq_len=config.context_length,
        tokenizer=tokenizer_fingerprint(source.path),
        isolates_documents=config.intra_document_masking,
        top_k=config.top_k,
    )
    if config.kl_weight > 0 and (config.top_k is None or config.top_k_tail == "bucket"):
        stored.require_tails(LOSSES[config.loss])
    return stored


def _teacher_details(stored: StoredLogits | None, *, has_teacher: bool, alongside: bool) -> str:
    if stored is not None:
        return f"stored logits, {stored.header.top_k} tokens per position"
    if not has_teacher:
        return "none: the loss needs no teacher"
    return "in memory, corrected alongside" if alongside else "in memory, frozen"


def _content(config: Distill) -> dict[str, object]:
    return unless_neutral(content_of(config), **NEUTRAL)


def _texts(config: Distill) -> tuple[str, ...]:
    return tuple(domain.data for domain in config.mixture())


DISTILL: Stage[Distill] = Stage(
    name="distill",
    run=run,
    format_version=3,
    libraries=("torch", "transformers", "accelerate"),
    content=_content,
    data=_texts,
    fingerprint=source_fingerprint,
    parallel=True,
)
# The same training, of which a run with several cuts has one after each.
DISTILL_PART: Stage[DistillPartConfig] = Stage(
    name=DISTILL.name,
    run=_run_part,
    format_version=DISTILL.format_version,
    libraries=DISTILL.libraries,
    content=lambda config: {**content_of(config), "distill": _content(config.distill)},
    data=lambda config: _texts(config.distill),
    fingerprint=source_fingerprint,
    parallel=True,
)
