"""The one training core: transformers' Trainer around a module that computes its own loss.

What is ours here: deterministic data order without a sampler, checkpoints that hold only the
student under its plain names and count only when complete, and a stop on a non-finite loss. A run
that is killed and started again continues from the last complete checkpoint and ends in the same
bytes.
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from compressor.console import Console, Tick
from compressor.data.packing import PackedWindows
from compressor.errors import VerificationError

CHECKPOINTS = "checkpoints"
COMPLETE_MARK = "complete"
STUDENT_FILE = "student.safetensors"
LOGGING_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimizer and schedule, in optimizer steps and windows.

    Attributes:
        max_steps: Optimizer steps.
        micro_batch_size: Windows per forward pass.
        accumulation_steps: Forward passes per optimizer step.
        learning_rate: Peak.
        min_learning_rate_ratio: Floor of the cosine over the peak.
        warmup_steps: Linear warm-up.
        checkpoint_steps: Steps between checkpoints.
        seed: Seed of the Trainer's generators.
        bf16: Autocast to bfloat16; weights and optimizer stay float32.
        use_cpu: Stay on the CPU even if there is a GPU.
    """

    max_steps: int
    micro_batch_size: int
    accumulation_steps: int
    learning_rate: float
    min_learning_rate_ratio: float
    warmup_steps: int
    checkpoint_steps: int
    seed: int
    bf16: bool
    use_cpu: bool


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """The course of a run: one entry per ten optimizer steps, free of timings."""

    steps: tuple[int, ...]
    loss: tuple[float, ...]
    grad_norm: tuple[float, ...]
    learning_rate: tuple[float, ...]


class TrainingExtension:
    """What a kind of training adds to the loop; as it stands, nothing.

    Everything it changes outside the optimizer it saves with every checkpoint and loads again.
    """

    def make_optimizer(self, module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer | None:
        """The optimizer to use; None for AdamW with the config's settings."""
        return None

    def after_step(self, step: int) -> None:
        """Called after every optimizer step, the first being 1."""

    def save(self, directory: Path) -> None:
        """Write what a resumed run needs into a checkpoint."""

    def load(self, directory: Path) -> None:
        """Take it up again, after the student's weights."""


def train(
    module: nn.Module,
    data: PackedWindows,
    config: TrainingConfig,
    work_dir: Path,
    console: Console,
    *,
    extension: TrainingExtension | None = None,
) -> TrainingLog:
    """Train `module.student` in place, continuing from `work_dir/checkpoints` if there is something.

    Args:
        module: Has the trained model as `student`; its forward returns `{"loss": scalar}`.
        data: Windows in the order they are to be seen.
        config: Optimizer and schedule.
        work_dir: Where checkpoints live while the run lasts.
        console: Progress.
        extension: What this kind of training adds.

    Raises:
        VerificationError: on a non-finite loss, with step and data position.
    """
    extension = extension or TrainingExtension()
    checkpoints = work_dir / CHECKPOINTS
    last = last_complete_checkpoint(checkpoints)
    if last is not None:
        console.info(f"continuing from {last.name}")
    # Precision is kept per process; an earlier training's must not leak into this one. transformers
    # before 5 keeps it in the environment as well.
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 - it has no public name
    with console.progress("distilling", config.max_steps) as tick:
        trainer = _StudentTrainer(
            model=module,
            args=_arguments(config, checkpoints),
            train_dataset=data,
            callbacks=[_Watch(tick), _Extend(extension), _MarkComplete()],
            optimizers=(extension.make_optimizer(module, config), None),
            extension=extension,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return TrainingLog(
        steps=tuple(entry["step"] for entry in entries),
        loss=tuple(entry["loss"] for entry in entries),
        grad_norm=tuple(float(entry["grad_norm"]) for entry in entries),
        learning_rate=tuple(entry["learning_rate"] for entry in entries),
    )


def last_complete_checkpoint(checkpoints: Path) -> Path | None:
    """The newest checkpoint whose every file was written; unfinished ones are removed."""
    if not checkpoints.is_dir():
        return None
    complete: list[Path] = []
    for path in checkpoints.glob("checkpoint-*"):
        if (path / COMPLETE_MARK).is_file():
            complete.append(path)
        else:
            shutil.rmtree(path)
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _arguments(config: TrainingConfig, checkpoints: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=config.max_steps,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.accumulation_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": config.min_learning_rate_ratio},
        warmup_steps=config.warmup_steps,
        optim="adamw_torch",
        weight_decay=0.0,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=config.bf16,
        use_cpu=config.use_cpu,
        seed=config.seed,
        save_strategy="steps",
        save_steps=config.checkpoint_steps,
        save_total_limit=2,
        logging_steps=math.gcd(LOGGING_STEPS, config.checkpoint_steps),
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=not config.use_cpu,
    )


class _StudentTrainer(Trainer):
    """Trainer that saves and restores the student, and what its extension holds, alone."""

    def __init__(self, *, extension: TrainingExtension, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._extension = extension

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        directory = Path(output_dir or str(self.args.output_dir))
        directory.mkdir(parents=True, exist_ok=True)
        save_file(student_state(self._student()), directory / STUDENT_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        state = load_file(Path(resume_from_checkpoint) / STUDENT_FILE)
        self._student().load_state_dict(state, strict=False)
        self._extension.load(Path(resume_from_checkpoint))

    def _student(self) -> nn.Module:
        student: nn.Module = self.accelerator.unwrap_model(self.model).student
        return student

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            windows_per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps
            windows = self.state.global_step * windows_per_step
            raise VerificationError(
                "the training loss is not finite",
                where=f"optimizer step {self.state.global_step + 1}, after window {windows}",
                found=loss.item(),
                hint="a lower learning rate, or a longer warm-up",
            )
        return loss


def student_state(student: nn.Module) -> dict[str, torch.Tensor]:
    """A model's parameters under their plain names; of tied ones only the first name."""
    return {name: parameter.detach().contiguous() for name, parameter in student.named_parameters()}


class _Watch(TrainerCallback):
    """Shows step and loss."""

    def __init__(self, tick: Tick) -> None:
        self._tick = tick
        self._note = ""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.log_history and "loss" in state.log_history[-1]:
            self._note = f"loss {state.log_history[-1]['loss']:.4f}"

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._tick(self._note, done=state.global_step)


class _Extend(TrainerCallback):
    """Calls the extension after every step and at every checkpoint."""

    def __init__(self, extension: TrainingExtension) -> None:
        self._extension = extension

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._extension.after_step(state.global_step)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._extension.save(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")


class _MarkComplete(TrainerCallback):
    """Marks a checkpoint whose every file is written; a killed save leaves none."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        directory = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        (directory / COMPLETE_MARK).touch()
