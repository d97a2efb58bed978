"""The one training core: transformers' Trainer around a module that computes its own loss.

What is ours here: a stream of windows whose position belongs to the checkpoint, losses normalised by the
tokens of the whole step over all processes, checkpoints that hold the student under its plain names and
count only when complete, and a watchdog. A run that is killed and started again continues from the last
complete checkpoint and ends in the same bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from compressor.core.console import Console
from compressor.core.errors import VerificationError
from compressor.core.processes import barrier, is_main, rank, sum_over_processes, world_size
from compressor.data.mixing import WindowStream
from compressor.data.packing import IGNORED, Window
from compressor.runs.artifact import LOGS
from compressor.training.batches import Batches
from compressor.training.callbacks import (
    DOMAIN_LOSS,
    LOGGING_STEPS,
    Extend,
    Guard,
    MarkComplete,
    TrainingExtension,
    Watch,
    reporters,
)
from compressor.training.checkpoints import last_complete_checkpoint
from compressor.training.sharding import (
    full_state,
    is_sharded,
    load_full_state_,
    load_local_optimizer_state_,
    local_optimizer_state,
)
from compressor.training.speed import Speed
from compressor.training.watchdog import refuse_non_finite

CHECKPOINTS = "checkpoints"
STUDENT_FILE = "student.safetensors"
STREAM_FILE = "stream.json"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimizer and schedule, in optimizer steps and windows.

    Attributes:
        max_steps: Optimizer steps.
        micro_batch_size: Windows per forward pass and process.
        accumulation_steps: Forward passes per optimizer step and process.
        learning_rate: Peak.
        min_learning_rate_ratio: Floor of the cosine over the peak.
        warmup_steps: Linear warm-up.
        checkpoint_steps: Steps between checkpoints.
        seed: Seed of the Trainer's generators.
        bf16: Autocast to bfloat16; weights and optimizer stay float32.
        use_cpu: Stay on the CPU even if there is a GPU.
        report_to: Where curves go: tensorboard, wandb, mlflow.
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
    report_to: tuple[str, ...] = ()

    @property
    def batch_size(self) -> int:
        """Windows per optimizer step over all processes."""
        return self.micro_batch_size * self.accumulation_steps * world_size()


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """The course of a run: one entry per ten optimizer steps, free of timings."""

    steps: tuple[int, ...]
    loss: tuple[float, ...]
    grad_norm: tuple[float, ...]
    learning_rate: tuple[float, ...]
    domain_loss: dict[str, tuple[float | None, ...]]


def train(
    module: nn.Module,
    stream: WindowStream,
    config: TrainingConfig,
    work_dir: Path,
    console: Console,
    *,
    extensions: Sequence[TrainingExtension] = (),
    complete: Callable[[Window], Window] = lambda window: window,
    flops_per_token: float | None = None,
) -> TrainingLog:
    """Train `module.student` in place, continuing from `work_dir/checkpoints` if there is something.

    Args:
        module: Has the trained model as `student`; its forward takes a batch and the step's token count
            and returns `{"loss": scalar, "window_losses": [B], "window_tokens": [B]}`.
        stream: Windows in the order they are to be seen.
        config: Optimizer and schedule.
        work_dir: Where checkpoints live while the run lasts.
        console: Progress.
        extensions: What this kind of training adds; at most one brings an optimizer.
        complete: Adds to each of this process's windows what the stream does not hold.
        flops_per_token: Of a training step, for the utilisation of a known GPU.

    Raises:
        VerificationError: on a non-finite loss or gradient, with step, data position and layer; when every
            checkpoint that is there is damaged.
    """
    checkpoints = work_dir / CHECKPOINTS
    last = last_complete_checkpoint(checkpoints, console)
    if last is not None:
        console.info(f"continuing from {last.name}")
    # Precision is kept per process; an earlier training's must not leak into this one.
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    AcceleratorState._reset_state(reset_partial_state=world_size() == 1)  # noqa: SLF001 - no public name
    # Already sharded: accelerate would put a second kind of data parallelism around it.
    module._is_accelerate_prepared = is_sharded(module)  # type: ignore[assignment]  # noqa: SLF001
    with console.progress("training", config.max_steps) as tick:
        trainer = _StudentTrainer(
            model=module,
            args=_arguments(config, checkpoints),
            callbacks=[
                Watch(tick),
                Extend(extensions),
                MarkComplete(),
                *reporters(config.report_to, work_dir / LOGS),
            ],
            optimizers=(_optimizer(extensions, module, config), None),
        )
        trainer.set_up(_batches(stream, config, complete), config, extensions, Speed(flops_per_token))
        trainer.add_callback(Guard(trainer.check_step))
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    return _log_of(trainer.state.log_history, stream.names)


def _optimizer(
    extensions: Sequence[TrainingExtension], module: nn.Module, config: TrainingConfig
) -> torch.optim.Optimizer | None:
    made = [extension.make_optimizer(module, config) for extension in extensions]
    return next((optimizer for optimizer in made if optimizer is not None), None)


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
        ddp_find_unused_parameters=False,  # every loss reaches every parameter
        use_cpu=config.use_cpu,
        seed=config.seed,
        save_strategy="steps",
        save_steps=config.checkpoint_steps,
        save_total_limit=None,  # the oldest goes when a newer one is complete
        ignore_data_skip=True,  # the stream knows its own position
        logging_steps=math.gcd(LOGGING_STEPS, config.checkpoint_steps),
        logging_nan_inf_filter=False,
        report_to=[name for name in config.report_to if name != "tensorboard"],
        disable_tqdm=True,
    )


def _batches(stream: WindowStream, config: TrainingConfig, complete: Callable[[Window], Window]) -> Batches:
    return Batches(
        stream,
        max_steps=config.max_steps,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size,
        complete=complete,
    )


class _StudentTrainer(Trainer):
    """Trainer over a `WindowStream` that saves and restores the student and what its extensions hold."""

    def set_up(
        self,
        batches: Batches,
        config: TrainingConfig,
        extensions: Sequence[TrainingExtension],
        speed: Speed,
    ) -> None:
        """Set what the Trainer itself does not know."""
        self._batches, self._stream, self._config = batches, batches.stream, config
        self._extensions, self._speed = extensions, speed
        # On the device: reading them at every micro-batch would make the GPU wait.
        shape = (self._stream.num_domains, 2)
        self._domains = torch.zeros(shape, dtype=torch.float64, device=self.args.device)
        self._step_batches: list[dict[str, torch.Tensor]] = []
        self._step_losses: list[torch.Tensor] = []
        self.model_accepts_loss_kwargs = True  # losses are normalised here, not by accumulation steps

    def get_train_dataloader(self) -> Any:
        return self._batches

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """A step's micro-batches, and its counted tokens over all processes."""
        self._step_batches, self._step_losses = [next(epoch_iterator) for _ in range(num_batches)], []
        counted = sum(int((batch["labels"] != IGNORED).sum()) for batch in self._step_batches)
        total = sum_over_processes(torch.tensor(float(counted), device=device))
        self._speed.count(sum(batch["input_ids"].numel() for batch in self._step_batches) * world_size())
        return self._step_batches, total

    def compute_loss(self, model: nn.Module, inputs: Any, *, num_items_in_batch: Any = None) -> Any:
        """A micro-batch's share of the step's mean loss."""
        with self._autocast():
            outputs = model(**inputs, num_tokens=num_items_in_batch)
        sums = torch.stack([outputs["window_losses"], outputs["window_tokens"]], dim=1)
        self._domains.index_add_(0, inputs["domain_ids"], sums.detach().double())
        # Data parallelism averages gradients over processes; the loss is divided by all their tokens.
        loss = outputs["loss"] * world_size()
        self._step_losses.append(loss.detach())
        return loss

    def _autocast(self) -> Any:
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self._config.bf16)

    def check_step(self) -> None:
        """Before the optimizer moves: refuse a step whose loss or gradient is not finite."""
        refuse_non_finite(
            self.model_wrapped,
            self._step_batches,
            self._step_losses,
            step=self.state.global_step + 1,
            position=sum(self._stream.drawn) - self._config.batch_size,
            autocast=self._autocast,
        )

    def log(self, logs: dict[str, float], *arguments: Any, **keywords: Any) -> None:
        if "loss" in logs:
            logs |= self._domain_losses() | self._speed.take()
            logs["seconds_left"] = (self.state.max_steps - self.state.global_step) * logs["seconds_per_step"]
        super().log(logs, *arguments, **keywords)

    def _domain_losses(self) -> dict[str, float]:
        """Mean loss per domain since the last log."""
        sums = sum_over_processes(self._domains.float()).cpu()
        self._domains.zero_()
        return {
            f"{DOMAIN_LOSS}{name}": float(total / tokens)
            for name, (total, tokens) in zip(self._stream.names, sums, strict=True)
            if tokens
        }

    def save_model(self, output_dir: str | None = None, **_flags: Any) -> None:
        """Every process gathers the student, the main one writes it and the data position."""
        directory = Path(output_dir or str(self.args.output_dir))
        state = full_state(self._student())
        if is_main():
            directory.mkdir(parents=True, exist_ok=True)
            save_file(state, directory / STUDENT_FILE)
            (directory / STREAM_FILE).write_text(json.dumps(self._stream.state_dict()), encoding="utf-8")
        barrier()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        optimizer, schedule = local_optimizer_state(self.optimizer), self.lr_scheduler.state_dict()
        torch.save({"optimizer": optimizer, "schedule": schedule}, _optimizer_file(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        file = _optimizer_file(checkpoint)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            load_local_optimizer_state_(self.optimizer, state["optimizer"])
            self.lr_scheduler.load_state_dict(state["schedule"])
        except (EOFError, KeyError, ValueError, UnpicklingError) as error:
            # Its sha256 is right: another version of torch may have written it.
            raise VerificationError(
                "the optimizer of a checkpoint cannot be loaded", where=str(file), found=error
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        directory = Path(resume_from_checkpoint)
        load_full_state_(self._student(), load_file(directory / STUDENT_FILE))
        self._stream.load_state_dict(json.loads((directory / STREAM_FILE).read_text(encoding="utf-8")))
        for extension in self._extensions:
            extension.load(directory)

    def _student(self) -> nn.Module:
        student: nn.Module = self.accelerator.unwrap_model(self.model).student
        return student


def _optimizer_file(checkpoint: str) -> Path:
    return Path(checkpoint) / f"optimizer-{rank()}.pt"


def _log_of(history: list[dict[str, Any]], domains: Sequence[str]) -> TrainingLog:
    entries = [entry for entry in history if "loss" in entry]
    return TrainingLog(
        steps=tuple(entry["step"] for entry in entries),
        loss=tuple(entry["loss"] for entry in entries),
        grad_norm=tuple(float(entry["grad_norm"]) for entry in entries),
        learning_rate=tuple(entry["learning_rate"] for entry in entries),
        domain_loss={
            name: tuple(entry.get(f"{DOMAIN_LOSS}{name}") for entry in entries)
            for name in (domains if len(domains) > 1 else ())
        },
    )
