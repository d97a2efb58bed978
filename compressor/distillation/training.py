"""What every kind of distillation does around the trainer: schedule, text, placement, saving."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import register_fsdp_forward_method

from compressor.core.errors import UnsupportedError, UsageError
from compressor.core.hardware import cpu_has_bf16, require_memory
from compressor.core.processes import is_main, on_main, world_size
from compressor.data.mixing import WHOLE, Part, WindowStream, count_windows, open_stream, write_domains
from compressor.data.packing import Window
from compressor.models.adapter import ModelAdapter
from compressor.models.checkpoint import CheckpointReader, read_config, write_checkpoint
from compressor.models.config.portable import write_config
from compressor.models.digests import spec_digest, write_digests
from compressor.models.dims import dims_of_config
from compressor.models.load import load_model
from compressor.models.positions import warn_beyond_positions
from compressor.models.shapes import is_parameter
from compressor.models.sparse.low_rank import AdapterBranch, branch_digests, refuse_adapter
from compressor.models.tokenizer import load_tokenizer
from compressor.models.tokenizer_files import copy_tokenizer
from compressor.planning.schedule import Schedule, training_flops_per_token, training_schedule
from compressor.recipe.option import content_of, fields_of, unless_neutral
from compressor.recipe.recipe import Distill, Domain
from compressor.runs.artifact import LOGS, ModelArtifact
from compressor.runs.stage import StageContext, start_afresh
from compressor.training.config import TrainingConfig, TrainingLog
from compressor.training.extension import TrainingExtension
from compressor.training.probes import take_probes, write_probes
from compressor.training.sharding import is_sharded, reshard_, shard_, stored_tensors
from compressor.training.trainer import CHECKPOINTS, train

TOKENS = "tokens"
SCRATCH = (TOKENS, CHECKPOINTS)  # what only an unfinished training needs
_BYTES_PER_TRAINED = 16

_TEXT_FIELDS = (
    *("data", "domains", "loss_on", "tokens", "context_length", "intra_document_masking", "batch_size"),
)
_STEP_FIELDS = ("learning_rate", "min_learning_rate_ratio", "warmup_steps", "warmup_ratio", "sharding")
# Options that came later, at the values by which nothing changes.
NEUTRAL: dict[str, object] = {"warmup_ratio": None, "top_k_tail": "drop", "kl_weighting": "uniform"}


def training_content(config: Distill, *more: str, trains: bool = True) -> dict[str, object]:
    """What decides a training's text and steps, and `more` fields, without the losses of distillation.

    `trains` says whether weights are trained on the text; else a model only reads it.
    """
    steps = _STEP_FIELDS if trains else ()
    content = fields_of(content_of(config), *_TEXT_FIELDS, "micro_batch_size", *steps, *more)
    return unless_neutral(content, **NEUTRAL)


def schedule(
    config: Distill, *, seed: int, device: str, dtype: str, steps: Schedule | None = None
) -> TrainingConfig:
    """The trainer's settings, for the steps given or those that the token budget buys.

    Raises:
        UsageError: when the budget does not fill one window.
    """
    steps = steps or training_schedule(config, world_size())
    return TrainingConfig(
        max_steps=steps.steps,
        batch_size=steps.batch_size,
        micro_batch_size=steps.micro_batch_size,
        learning_rate=config.learning_rate,
        min_learning_rate_ratio=config.min_learning_rate_ratio,
        warmup_steps=steps.warmup_steps,
        checkpoint_steps=config.save_steps,
        seed=seed,
        bf16=dtype == "bfloat16" and (device != "cpu" or cpu_has_bf16()),
        use_cpu=device == "cpu",
        report_to=config.report_to,
    )


def require_training_memory(trained: Sequence[ModelArtifact], config: Distill, device: str) -> None:
    """Refuse to begin what cannot fit: weights, gradients and AdamW's two moments, all in float32.

    Activations, the teacher and everything else come on top, so this refuses nothing that could run.

    Raises:
        ResourceError: when they alone are more than all memory there is, swap included.
    """
    ways = 1 if config.sharding == "ddp" else world_size()
    needed = _BYTES_PER_TRAINED * sum(artifact.num_parameters for artifact in trained) // ways
    require_memory(
        needed,
        device=device,
        what="not enough memory to train: weights, gradients and optimizer do not fit",
        hint="a smaller student, more memory, or more GPUs (torchrun)",
    )


def require_loss_on(config: Distill) -> None:
    """Refuse settings under which a loss on responses alone would not be one.

    Raises:
        UsageError: for dynamic batches, whose held-out losses are over all tokens, and for sampled text.
    """
    if config.loss_on == "all":
        return
    for setting, is_given in (
        ("distill.dynamic_batches", config.dynamic_batches.variant != "off"),
        ("distill.generate", config.generate.tokens > 0),
    ):
        if is_given:
            raise UsageError(
                "this setting needs a loss on all tokens",
                where=setting,
                expected="--loss-on all",
                found="--loss-on responses",
                hint="turn this setting off, or use --loss-on all",
            )


def open_training_stream(
    config: Distill,
    plan: TrainingConfig,
    domains: Sequence[Domain],
    tokenizer_of: ModelArtifact,
    out_dir: Path,
    context: StageContext,
    *,
    part: Part = WHOLE,
) -> WindowStream:
    """Tokenise the training text into `out_dir` and mix it, as many windows as the plan takes.

    Of several parts that follow each other, each draws other windows: those that it would draw if all were
    one training. With dynamic batches, whose course the next part does not know, they may overlap.

    Raises:
        UsageError: when a domain's text does not fill one window.
    """
    require_loss_on(config)
    warn_beyond_positions(tokenizer_of.path, config.context_length, context.console)
    num_steps = part.of * plan.max_steps
    if config.dynamic_batches.variant == "off":
        counts = count_windows(
            [domain.weight for domain in domains],
            num_steps=num_steps,
            batch_size=plan.batch_size,
            seed=context.seed,
        )
    else:  # any domain may turn out to be the one that lags
        counts = [num_steps * plan.batch_size] * len(domains)

    def write() -> None:
        tokenizer = load_tokenizer(tokenizer_of.path, trust_remote_code=context.trust_remote_code)
        context.console.info("tokenizing the training text")
        write_domains(config, domains, tokenizer, out_dir / TOKENS, counts)

    on_main(write)
    stream = open_stream(config, domains, out_dir / TOKENS, seed=context.seed)
    for name, num_distinct, count in zip(stream.names, stream.num_distinct, counts, strict=True):
        if count > num_distinct:
            which = "the training text" if len(counts) == 1 else f"domain {name}"
            context.console.warn(f"{which} is seen {count / num_distinct:.2f} times")
    stream.skip((part.number - 1) * plan.max_steps, plan.batch_size)
    return stream


def place_(module: nn.Module, config: Distill, plan: TrainingConfig, device: str) -> None:
    """Set `module.student` up for training in place: activation checkpointing, compilation, sharding.

    The module's `teacher`, if it has one, is sharded on its own.
    """
    student: Any = module.student
    if config.activation_checkpointing:
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.compile == "on" or (config.compile == "auto" and device == "cuda"):
        for layer in ModelAdapter(student).layers:
            layer.module.compile()
    if world_size() == 1 or config.sharding == "ddp":
        return
    mesh = init_device_mesh(device, (world_size(),))
    teacher = getattr(module, "teacher", None)
    if teacher is not None:
        shard_(teacher, teacher.model, mesh, bf16=False)
    shard_(module, student, mesh, bf16=plan.bf16)
    for method in ("cross_entropy", "probe_logits"):
        register_fsdp_forward_method(module, method)


def flops_of_training(
    teacher: Path | None, student: Path, context_length: int, *, trains_teacher: bool = False
) -> int:
    """FLOPs of one trained token of two checkpoints; recomputed activations do not count as useful work."""
    asked = None if teacher is None else dims_of_config(read_config(teacher))
    trained = dims_of_config(read_config(student))
    return training_flops_per_token(trained, asked, context_length, trains_teacher=trains_teacher)


def refuse_unfit_teacher(student: ModelArtifact, teacher: ModelArtifact, *, trust_remote_code: bool) -> None:
    """Refuse a teacher whose logits cannot be compared, or that is more than its checkpoint.

    Raises:
        UnsupportedError: when the vocabularies differ, or the teacher has a low-rank branch beside it.
    """
    refuse_adapter(teacher.path, by="a teacher")
    what = "student and teacher have different vocabularies"
    hint = "take the teacher that the student was pruned from, or one with the same tokenizer"
    sizes = [read_config(artifact.path)["vocab_size"] for artifact in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise UnsupportedError(what, expected=sizes[1], found=sizes[0], hint=hint)
    # Two tokenizers of one size may still give every id another token.
    ours, theirs = (
        load_tokenizer(artifact.path, trust_remote_code=trust_remote_code).get_vocab()
        for artifact in (student, teacher)
    )
    if ours != theirs:
        token = min(token for token, _ in ours.items() ^ theirs.items())
        raise UnsupportedError(
            what,
            where=f"token {token!r}",
            expected=f"id {theirs.get(token)}",
            found=f"id {ours.get(token)}",
            hint=hint,
        )


def save_trained(
    module: nn.Module,
    source: ModelArtifact,
    out_dir: Path,
    *,
    dtype: torch.dtype,
    plan: TrainingConfig,
    branches: Mapping[str, AdapterBranch] | None = None,
) -> None:
    """Write a trained model in the source checkpoint's order, so that names stay the plain ones.

    Before that, what a verifier compares the files with is taken from memory: the logits of fixed
    probes, and the digest of every tensor. Sharded tensors reach the main process block by block.

    Every process must take part.

    Args:
        module: The trained module; its student is rounded to `dtype` in place.
        source: The checkpoint that training began with.
        out_dir: Where to write.
        dtype: Stored dtype.
        plan: The training's schedule.
        branches: Low-rank branches beside the student's layers; the caller writes their files.
    """
    student: Any = module.student
    dims = dims_of_config(read_config(source.path))
    with CheckpointReader(source.path) as reader:
        names = [name for name in reader if is_parameter(name, dims)]
    _round_(student, frozenset(names), dtype)
    # Sharded weights are gathered in bfloat16; elsewhere only autocast would narrow a forward pass.
    compute_dtype = "bfloat16" if is_sharded(student) and plan.bf16 else "float32"
    probes = take_probes(module, compute_dtype=compute_dtype)
    reshard_(module)
    specs = stored_tensors(student, names, dtype)
    if not is_main():
        for spec in (*specs, *specs):  # once for the digests, once for the files
            for _ in spec.blocks():
                pass
        return
    digests = {spec.name: spec_digest(spec) for spec in specs}
    for name, branch in (branches or {}).items():
        digests |= branch_digests(name, branch)
    write_digests(out_dir, digests)
    write_probes(out_dir, probes)
    write_checkpoint(out_dir, specs)
    write_config(out_dir, {**read_config(source.path), "dtype": str(dtype).removeprefix("torch.")})
    copy_tokenizer(source.path, out_dir)


@torch.no_grad()
def _round_(model: nn.Module, names: frozenset[str], dtype: torch.dtype) -> None:
    """Give parameters in memory the values that will be stored; sharded ones stay sharded."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.copy_(parameter.to(dtype).to(parameter.dtype))


class Training:
    """A training in a stage's directory: its text tokenised, a module trained on it, and saved."""

    def __init__(
        self,
        config: Distill,
        domains: Sequence[Domain],
        source: ModelArtifact,
        out_dir: Path,
        context: StageContext,
        *,
        plan: TrainingConfig | None = None,
        trained: Sequence[ModelArtifact] | None = None,
        part: Part = WHOLE,
    ) -> None:
        """Keep what an interrupted training continues from, and tokenise the text.

        Args:
            config: What the recipe says.
            domains: The texts.
            source: What is trained.
            out_dir: Of the stage.
            context: Of the stage.
            plan: The trainer's settings, where they are not those of `config`.
            trained: The models whose weights train, where that is not `source` alone.
            part: Which of several trainings on one text it is.

        Raises:
            UsageError: when the budget or a domain's text does not fill one window.
            ResourceError: when what trains cannot be in memory.
        """
        on_main(lambda: start_afresh(out_dir, but=(CHECKPOINTS, TOKENS, LOGS)))
        require_training_memory([source] if trained is None else trained, config, context.device)
        self.plan = plan or schedule(config, seed=context.seed, device=context.device, dtype=context.dtype)
        self.stream = open_training_stream(config, self.plan, domains, source, out_dir, context, part=part)
        self._drawn_before = tuple(self.stream.drawn)
        self.config, self.domains, self.source = config, domains, source
        self.out_dir, self.context = out_dir, context

    def fit_(
        self,
        module: nn.Module,
        *,
        teacher: ModelArtifact | None = None,
        trains_teacher: bool = False,
        extensions: Sequence[TrainingExtension] = (),
        complete: Callable[[Window], Window] = lambda window: window,
    ) -> TrainingLog:
        """Place a module, whose teacher in memory is the one given, and train it."""
        place_(module, self.config, self.plan, self.context.device)
        flops_per_token = flops_of_training(
            teacher.path if teacher else None,
            self.source.path,
            self.config.context_length,
            trains_teacher=trains_teacher,
        )
        return train(
            module,
            self.stream,
            self.plan,
            self.out_dir,
            self.context.console,
            extensions=extensions,
            complete=complete,
            flops_per_token=flops_per_token,
        )

    def save(
        self, module: nn.Module, log: TrainingLog, *, branches: Mapping[str, AdapterBranch] | None = None
    ) -> dict[str, object]:
        """Write what was trained; returns what is reported of it."""
        dtype = getattr(torch, self.context.dtype)
        save_trained(module, self.source, self.out_dir, dtype=dtype, plan=self.plan, branches=branches)
        return self.report(log)

    def report(self, log: TrainingLog) -> dict[str, object]:
        """What is reported of a finished training."""
        stream = self.stream
        drawn = [now - before for now, before in zip(stream.drawn, self._drawn_before, strict=True)]
        return {
            "schedule": self.plan.record(),
            "tokens": sum(drawn) * self.config.context_length,
            "epochs": round(max(stream.num_epochs), 4),
            "domains": dict(zip(stream.names, drawn, strict=True)),
            "texts": {domain.name: domain.text for domain in stream.domains},
            "curve": asdict(log),
        }


def load(artifact: ModelArtifact, dtype: str, context: StageContext) -> Any:
    """A model, on the context's device and as far as it is trusted."""
    trust = context.trust_remote_code
    return load_model(artifact.path, dtype=dtype, device=context.device, trust_remote_code=trust)


def load_trainable(artifact: ModelArtifact, context: StageContext) -> Any:
    """A model whose parameters train, in float32."""
    return load(artifact, "float32", context).requires_grad_(requires_grad=True).train()
