"""The distill stage: tokenise, train the student on the teacher's logits, save it in 16 bits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compressor.core.errors import UsageError
from compressor.data.mixing import WindowStream
from compressor.data.packing import Window
from compressor.data.sources import source_fingerprint
from compressor.distillation.choice import LossChoice, choose_losses, describe
from compressor.distillation.correct_stage import (
    CorrectAlongside,
    correction_learning_rate,
    require_alongside,
)
from compressor.distillation.domain_losses import DomainLosses
from compressor.distillation.generate_stage import TEXT_FILE
from compressor.distillation.logits_stage import tokenizer_fingerprint
from compressor.distillation.module import DistillationModule
from compressor.distillation.stored_logits import StoredLogits
from compressor.distillation.training import (
    clean_up,
    flops_of_training,
    keep_only_progress,
    open_training_stream,
    place_,
    refuse_unfit_teacher,
    require_training_memory,
    save_trained,
    schedule,
    training_details,
)
from compressor.models.checkpoint import read_config
from compressor.models.load import load_model
from compressor.models.sparse.record import read_sparsity
from compressor.models.tokenizer import load_tokenizer
from compressor.recipe.recipe import Distill, Domain
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import Stage, StageContext, StageResult
from compressor.training.config import TrainingConfig
from compressor.training.dynamic_batches import DynamicBatchLoading, held_out_windows
from compressor.training.extension import TrainingExtension
from compressor.training.trainer import train

# Roles of what training may read beside student and teacher.
GENERATED = "generated"
STORED_LOGITS = "teacher_logits"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A student beside what it is trained on.

    Attributes:
        module: Student, teacher and loss.
        choice: The losses, and the rule that chose them.
        stored: The teacher's stored logits, where they replace it.
    """

    module: DistillationModule
    choice: LossChoice
    stored: StoredLogits | None

    def complete(self, window: Window) -> Window:
        """A window with the stored logits of its positions."""
        if self.stored is None:
            return window
        top = self.stored.window(window["input_ids"])
        return {**window, "teacher_top_ids": top.ids, "teacher_top_logprobs": top.logprobs}


def run(config: Distill, source: ModelArtifact, out_dir: Path, context: StageContext) -> StageResult:
    """Distill `source` from the context's teacher, or from its stored logits.

    Raises:
        UsageError: without a teacher, or for a sparse student.
        UnsupportedError: when the vocabularies differ.
    """
    _require_dense(source)
    keep_only_progress(out_dir)
    teachers = [context.teacher] if context.teacher and config.correction.mode == "alongside" else []
    require_training_memory([source, *teachers], config, context.device)
    stored = _stored_logits(config, source)
    _require_teaching(source, stored, context)
    plan = schedule(config, seed=context.seed, device=context.device, dtype=context.dtype)
    domains = training_domains(config, context)
    # Before the models are loaded: a text that cannot be tokenised costs no more than that.
    stream = open_training_stream(config, plan, domains, source, out_dir, context)
    setup = _set_up(config, source, context, stored)
    if setup.stored is not None:
        setup.stored.require_windows(stream.distinct)
    place_(setup.module, config, plan, context.device)
    dynamic = dynamic_batches(config, plan, domains, stream, setup.module, source, context)
    in_memory = context.teacher.path if context.teacher and setup.module.teacher else None
    log = train(
        setup.module,
        stream,
        plan,
        out_dir,
        context.console,
        extensions=[*_extensions(config, setup.module), *([dynamic] if dynamic else [])],
        complete=setup.complete,
        flops_per_token=flops_of_training(
            in_memory,
            source.path,
            config.context_length,
            trains_teacher=config.correction.mode == "alongside",
        ),
    )
    save_trained(setup.module, source, out_dir, dtype=getattr(torch, context.dtype), plan=plan)
    clean_up(out_dir)
    details = {
        "loss": describe(setup.module.loss),
        "loss_rule": setup.choice.rule,
        "teacher": _teacher_details(config, setup),
        **training_details(stream, plan, log, config.context_length),
    }
    if dynamic is not None:
        details["dynamic_batches"] = dynamic.report()
    return StageResult(num_parameters=source.num_parameters, details=details)


def training_domains(config: Distill, context: StageContext) -> tuple[Domain, ...]:
    """The recipe's domains, and the generated text where there is some."""
    domains = config.mixture()
    generated = context.others.get(GENERATED)
    if generated is None:
        return domains
    text = str(generated.path / TEXT_FILE)
    own = Domain(name=GENERATED, data=text, weight=config.generate.weight, reference_loss=None)
    return (*domains, own)


def dynamic_batches(
    config: Distill,
    plan: TrainingConfig,
    domains: tuple[Domain, ...],
    stream: WindowStream,
    module: DistillationModule,
    source: ModelArtifact,
    context: StageContext,
) -> DynamicBatchLoading | None:
    """Dynamic batch loading over these domains, where the recipe asks for it.

    Raises:
        UsageError: for a domain without held-out text, or without a reference where no teacher gives it.
    """
    dynamic = config.dynamic_batches
    if dynamic.variant == "off":
        return None
    references = [domain.reference_loss for domain in domains]
    if module.teacher is None and None in references:
        raise UsageError(
            "dynamic batches compare with a teacher in memory, or with reference losses",
            where="distill.domains[].reference_loss",
            expected="one for every domain",
            hint="give --teacher, set the reference losses, or turn --dynamic-batches off",
        )
    tokenizer = load_tokenizer(source.path, trust_remote_code=context.trust_remote_code)
    windows = held_out_windows(domains, tokenizer, size=dynamic.eval_size, seq_len=config.context_length)
    losses = DomainLosses(module, windows, plan)
    return DynamicBatchLoading(
        stream,
        losses.student,
        losses.teacher,
        references=references,
        variant=dynamic.variant,
        interval_steps=dynamic.interval_steps,
    )


def _require_dense(source: ModelArtifact) -> None:
    if read_sparsity(source.path) is not None:
        raise UsageError(
            "plain distillation would overwrite the zeros of a sparse student",
            where=str(source.path),
            hint="give the sparsified directory to `compress-export distill`, which keeps its mask",
        )


def _require_teaching(source: ModelArtifact, stored: StoredLogits | None, context: StageContext) -> None:
    """Refuse a student without a teacher, or with one whose logits cannot be compared."""
    if context.teacher is not None:
        refuse_unfit_teacher(source, context.teacher, trust_remote_code=context.trust_remote_code)
    elif stored is None:
        raise UsageError("distillation needs a teacher", hint="add --teacher MODEL, or --teacher-logits DIR")


def _set_up(
    config: Distill, source: ModelArtifact, context: StageContext, stored: StoredLogits | None
) -> Setup:
    """Student, teacher and the losses between them."""
    teacher = context.teacher
    num_layers = read_config(source.path)["num_hidden_layers"]
    choice = choose_losses(
        config,
        num_teacher_layers=read_config(teacher.path)["num_hidden_layers"] if teacher else num_layers,
        num_student_layers=num_layers,
        has_stored_logits=stored is not None,
    )
    for warning in choice.warnings:
        context.console.warn(warning)
    student: Any = _load(source, "float32", context)
    student.requires_grad_(requires_grad=True).train()
    loaded = None
    if teacher is not None and stored is None:
        loaded = _load_teacher(config, choice, teacher, context)
    alongside = config.correction.mode == "alongside"
    module = DistillationModule(student, loaded, choice.loss, corrects_teacher=alongside)
    return Setup(module=module, choice=choice, stored=stored)


def _load_teacher(
    config: Distill, choice: LossChoice, teacher: ModelArtifact, context: StageContext
) -> Any | None:
    """The teacher in the run's dtype, in float32 if it trains too; None where nothing asks for it."""
    if config.correction.mode == "alongside":
        require_alongside(config)
        return _load(teacher, "float32", context)
    if not choice.loss.needs_teacher and config.dynamic_batches.variant == "off":
        return None
    return _load(teacher, context.dtype, context)


def _load(artifact: ModelArtifact, dtype: str, context: StageContext) -> Any:
    trust = context.trust_remote_code
    return load_model(artifact.path, dtype=dtype, device=context.device, trust_remote_code=trust)


def _stored_logits(config: Distill, source: ModelArtifact) -> StoredLogits | None:
    """The store that the recipe names, if it is over this student's windows and vocabulary."""
    if config.teacher_logits is None:
        return None
    if config.correction.mode == "alongside":
        require_alongside(config)
    stored = StoredLogits(Path(config.teacher_logits))
    stored.require(
        vocab_size=read_config(source.path)["vocab_size"],
        seq_len=config.context_length,
        tokenizer=tokenizer_fingerprint(source.path),
        isolates_documents=config.intra_document_masking,
        top_k=config.top_k,
    )
    return stored


def _extensions(config: Distill, module: DistillationModule) -> list[TrainingExtension]:
    """What training the teacher adds to the loop."""
    if config.correction.mode != "alongside" or module.teacher is None:
        return []
    return [CorrectAlongside(module.teacher.model, learning_rate=correction_learning_rate(config))]


def _teacher_details(config: Distill, setup: Setup) -> str:
    if setup.stored is not None:
        return f"stored logits, {setup.stored.header.top_k} tokens per position"
    if setup.module.teacher is None:
        return "none: the loss needs no teacher"
    return "in memory, corrected alongside" if config.correction.mode == "alongside" else "in memory, frozen"


DISTILL: Stage[Distill] = Stage(
    name="distill",
    run=run,
    format_version=3,
    libraries=("torch", "transformers", "accelerate"),
    data=lambda config: tuple(domain.data for domain in config.mixture()),
    fingerprint=source_fingerprint,
    parallel=True,
)
