"""The distill stage: tokenise, train the student on the teacher's logits, save it in 16 bits."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict
from pathlib import Path

import torch

from compressor.artifact import ModelArtifact
from compressor.data.packing import PackedWindows, write_tokens
from compressor.distillation.criterion import LossConfig
from compressor.distillation.module import DistillationModule
from compressor.errors import UnsupportedError, UsageError
from compressor.hardware import cpu_has_bf16
from compressor.models.checkpoint import CheckpointReader, read_config, whole, write_checkpoint
from compressor.models.load import copy_tokenizer, load_model, load_tokenizer
from compressor.models.portable import write_config
from compressor.recipe import Distill
from compressor.sparsity.promise import read_promise
from compressor.stage import Stage, StageContext, StageResult
from compressor.training.trainer import CHECKPOINTS, TrainingConfig, student_state, train

TOKENS_FILE = "tokens.bin"
PUBLISHED_BATCH_SIZE = 1152
PUBLISHED_WARMUP_STEPS = 40
SHORTEST_PUBLISHED_RUN_STEPS = 400


def schedule(config: Distill, *, seed: int, device: str, dtype: str) -> TrainingConfig:
    """Turn a token budget into optimizer steps.

    The published batch is 1152 windows (arXiv 2408.11796) and the shortest published run 400 steps
    (arXiv 2407.14679); a smaller budget keeps the 400 steps and takes smaller batches.

    Raises:
        UsageError: when the budget does not fill one window.
    """
    num_windows = config.tokens // config.context_length
    if num_windows == 0:
        raise UsageError(
            "the token budget does not fill one training window",
            where="--tokens",
            expected=f"at least {config.context_length}",
            found=config.tokens,
        )
    batch_size = config.batch_size or max(
        1, min(PUBLISHED_BATCH_SIZE, num_windows // SHORTEST_PUBLISHED_RUN_STEPS)
    )
    batch_size = min(batch_size, num_windows)
    micro_batch_size = math.gcd(batch_size, config.micro_batch_size)
    max_steps = num_windows // batch_size
    warmup = config.warmup_steps
    return TrainingConfig(
        max_steps=max_steps,
        micro_batch_size=micro_batch_size,
        accumulation_steps=batch_size // micro_batch_size,
        learning_rate=config.learning_rate,
        min_learning_rate_ratio=config.min_learning_rate_ratio,
        warmup_steps=min(PUBLISHED_WARMUP_STEPS, max_steps // 10) if warmup is None else warmup,
        checkpoint_steps=config.checkpoint_steps,
        seed=seed,
        bf16=dtype == "bfloat16" and (device != "cpu" or cpu_has_bf16()),
        use_cpu=device == "cpu",
    )


def run(config: Distill, source: ModelArtifact, out_dir: Path, context: StageContext) -> StageResult:
    """Distill `source` from the context's teacher.

    Raises:
        UnsupportedError: when the vocabularies differ.
    """
    if context.teacher is None:
        raise UsageError("distillation needs a teacher", hint="--teacher MODEL")
    if read_promise(source.path) is not None:
        raise UsageError(
            "distillation would fill the zeros of a sparse student",
            where=str(source.path),
            hint="`compress-export distill` on a sparsified directory holds its mask",
        )
    refuse_other_vocabulary(source, context.teacher)
    plan = schedule(config, seed=context.seed, device=context.device, dtype=context.dtype)
    windows = training_windows(config, plan, source, out_dir, context)
    student = load_model(source.path, dtype="float32", device=context.device)
    student.requires_grad_(requires_grad=True).train()
    teacher = load_model(context.teacher.path, dtype=context.dtype, device=context.device)
    module = DistillationModule(student, teacher, LossConfig(temperature=config.temperature))
    log = train(module, windows, plan, out_dir, context.console)
    save_student(student, source, out_dir, getattr(torch, context.dtype))
    shutil.rmtree(out_dir / CHECKPOINTS)
    (out_dir / TOKENS_FILE).unlink()
    return StageResult(
        num_parameters=source.num_parameters,
        details={
            "loss": "forward KL on logits, mean over tokens",
            "schedule": asdict(plan),
            "tokens": len(windows) * config.context_length,
            "epochs": round(windows.num_epochs, 4),
            "curve": asdict(log),
        },
    )


def refuse_other_vocabulary(student: ModelArtifact, teacher: ModelArtifact) -> None:
    """Refuse models whose logits cannot be compared.

    Raises:
        UnsupportedError: when the vocabularies differ.
    """
    sizes = [read_config(artifact.path)["vocab_size"] for artifact in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise UnsupportedError(
            "student and teacher have different vocabularies", expected=sizes[1], found=sizes[0]
        )


def training_windows(
    config: Distill, plan: TrainingConfig, source: ModelArtifact, out_dir: Path, context: StageContext
) -> PackedWindows:
    """Tokenise the training text into `out_dir`, as many windows as the plan takes."""
    num_windows = plan.max_steps * plan.micro_batch_size * plan.accumulation_steps
    tokenizer = load_tokenizer(source.path, trust_remote_code=context.trust_remote_code)
    path = out_dir / TOKENS_FILE
    with context.console.rich.status("tokenising the training text"):
        write_tokens(config.data, "train", tokenizer, path, max_tokens=num_windows * config.context_length)
    windows = PackedWindows(path, seq_len=config.context_length, num_windows=num_windows, seed=context.seed)
    if windows.num_epochs > 1:
        context.console.warn(f"the training text is seen {windows.num_epochs:.2f} times")
    return windows


def save_student(student: torch.nn.Module, source: ModelArtifact, out_dir: Path, dtype: torch.dtype) -> None:
    """Write the student in the source checkpoint's order, so that names stay the plain ones."""
    state = student_state(student)
    with CheckpointReader(source.path) as reader:
        names = list(reader)
    specs = [whole(name, state[name].to(device="cpu", dtype=dtype)) for name in names]
    write_checkpoint(out_dir, specs)
    write_config(out_dir, {**read_config(source.path), "dtype": str(dtype).removeprefix("torch.")})
    copy_tokenizer(source.path, out_dir)


DISTILL: Stage[Distill] = Stage(
    name="distill",
    run=run,
    libraries=("torch", "transformers", "accelerate"),
    data=lambda config: (config.data,),
)
