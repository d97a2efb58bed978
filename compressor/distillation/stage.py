"""The distill stage: tokenise, train the student on the teacher's logits, save it in 16 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from compressor.artifact import ModelArtifact
from compressor.data.mixing import WindowStream
from compressor.distillation.choice import choose_loss, describe_loss, warn_of_small_top_k
from compressor.distillation.domain_losses import DomainLosses
from compressor.distillation.generate import TEXT_FILE
from compressor.distillation.module import DistillationModule
from compressor.distillation.training import (
    clean_up,
    open_training_stream,
    place_,
    refuse_other_vocabulary,
    save_trained,
    schedule,
    training_details,
    training_flops_per_token,
)
from compressor.errors import UsageError
from compressor.models.checkpoint import read_config
from compressor.models.load import load_model, load_tokenizer
from compressor.recipe import Distill, Domain
from compressor.sparsity.promise import read_promise
from compressor.stage import Stage, StageContext, StageResult
from compressor.training.dynamic_batches import DynamicBatchLoading, held_out_windows
from compressor.training.trainer import TrainingConfig, train

GENERATED = "generated"


def run(config: Distill, source: ModelArtifact, out_dir: Path, context: StageContext) -> StageResult:
    """Distill `source` from the context's teacher.

    Raises:
        UsageError: without a teacher, or for a sparse student.
        UnsupportedError: when the vocabularies differ.
    """
    teacher = _require_teacher(source, context)
    plan = schedule(config, seed=context.seed, device=context.device, dtype=context.dtype)
    domains = training_domains(config, context)
    stream = open_training_stream(config, plan, domains, source, out_dir, context)
    module, rule = _module(config, source, teacher, context)
    place_(module, config, plan, context.device)
    dynamic = dynamic_batches(config, plan, domains, stream, module, source, context)
    log = train(
        module,
        stream,
        plan,
        out_dir,
        context.console,
        extensions=[dynamic] if dynamic else [],
        flops_per_token=training_flops_per_token(teacher.path, source.path, config.context_length),
    )
    save_trained(module.student, source, out_dir, getattr(torch, context.dtype))
    clean_up(out_dir)
    details = {
        "loss": describe_loss(module.loss),
        "loss_rule": rule,
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
        UsageError: for a domain without held-out text.
    """
    dynamic = config.dynamic_batches
    if dynamic.variant == "off":
        return None
    tokenizer = load_tokenizer(source.path, trust_remote_code=context.trust_remote_code)
    windows = held_out_windows(domains, tokenizer, size=dynamic.eval_windows, seq_len=config.context_length)
    losses = DomainLosses(module, windows, plan)
    return DynamicBatchLoading(
        stream,
        losses.student,
        losses.teacher,
        references=[domain.reference_loss for domain in domains],
        variant=dynamic.variant,
        interval_steps=dynamic.interval_steps,
    )


def _require_teacher(source: ModelArtifact, context: StageContext) -> ModelArtifact:
    if context.teacher is None:
        raise UsageError("distillation needs a teacher", hint="--teacher MODEL")
    if read_promise(source.path) is not None:
        raise UsageError(
            "distillation would fill the zeros of a sparse student",
            where=str(source.path),
            hint="`compress-export distill` on a sparsified directory holds its mask",
        )
    refuse_other_vocabulary(source, context.teacher)
    return context.teacher


def _module(
    config: Distill, source: ModelArtifact, teacher: ModelArtifact, context: StageContext
) -> tuple[DistillationModule, str]:
    """Student, teacher and the loss between them, and the rule that chose it."""
    layers = [read_config(artifact.path)["num_hidden_layers"] for artifact in (teacher, source)]
    loss, rule = choose_loss(config, *layers)
    warn_of_small_top_k(loss.top_k, context.console)
    student: Any = load_model(source.path, dtype="float32", device=context.device)
    student.requires_grad_(requires_grad=True).train()
    # Cross-entropy alone needs no teacher, unless domains are to be compared with it.
    is_needed = loss.needs_teacher or config.dynamic_batches.variant != "off"
    frozen = load_model(teacher.path, dtype=context.dtype, device=context.device) if is_needed else None
    return DistillationModule(student, frozen, loss), rule


DISTILL: Stage[Distill] = Stage(
    name="distill",
    run=run,
    format_version=2,
    libraries=("torch", "transformers", "accelerate"),
    data=lambda config: tuple(domain.data for domain in config.mixture()),
    parallel=True,
)
