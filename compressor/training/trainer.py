"""The one training core: transformers' Trainer around a module that computes its own loss.

What is ours here: a stream of sequences whose position belongs to the checkpoint, losses normalised by
the tokens of the whole step over all processes, checkpoints of which every process writes its own part
and which count only when complete, and a watchdog. A run that is killed and started again continues from
the last complete checkpoint and ends in the same bytes; on another number of processes it sees the same
sequences in the same steps, and sums in another order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from compressor.core.console import Console
from compressor.core.json_files import read_json_mapping
from compressor.core.processes import is_main, sum_over_processes, world_size
from compressor.data.mixing import WindowStream
from compressor.data.packing import IGNORED, Window
from compressor.runs.artifact import LOGS, write_json
from compressor.training.batches import Batches
from compressor.training.callbacks import DOMAIN_LOSS, LOGGING_STEPS, Extend, Watch, reporters
from compressor.training.checkpoints import last_complete_checkpoint
from compressor.training.config import TrainingConfig, TrainingLog
from compressor.training.extension import TrainingExtension
from compressor.training.sharded_state import load_state_, save_state
from compressor.training.sharding import is_sharded
from compressor.training.speed import Speed
from compressor.training.watchdog import refuse_non_finite

CHECKPOINTS = "checkpoints"
PROGRESS_FILE = "progress.json"


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
    """Train a module in place, continuing from `work_dir/checkpoints` if there is something.

    Args:
        module: All its parameters are trained and checkpointed; its forward takes a batch and the step's
            token count and returns `{"loss": scalar, "window_losses": [B], "window_tokens": [B]}`.
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
            callbacks=[Watch(tick), *reporters(config.report_to, work_dir / LOGS)],
            optimizers=(_optimizer(extensions, module, config), None),
        )
        trainer.set_up(Batches(stream, config, complete), config, extensions, Speed(flops_per_token))
        trainer.add_callback(Extend(extensions, trainer.check_step))
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


class _StudentTrainer(Trainer):
    """Trainer over a `WindowStream` that saves and restores its module and what its extensions hold."""

    def set_up(
        self, batches: Batches, config: TrainingConfig, extensions: Sequence[TrainingExtension], speed: Speed
    ) -> None:
        """Set what the Trainer itself does not know."""
        self._batches, self._stream, self._config = batches, batches.stream, config
        self._extensions, self._speed = extensions, speed
        # On the device: reading them at every micro-batch would make the GPU wait.
        shape = (len(self._stream.domains), 2)
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
        self._speed.count(self._config.batch_size * self._step_batches[0]["input_ids"].shape[1])
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
        """Every process writes its part of what is trained, the main one the data position and schedule."""
        directory = Path(output_dir or str(self.args.output_dir))
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        save_state(directory, self._tensors(), self.optimizer)
        if is_main():
            progress = {
                "stream": self._stream.state_dict(),
                "schedule": self.lr_scheduler.state_dict(),
                "groups": [_numbers(group) for group in self.optimizer.param_groups],
            }
            write_json(directory / PROGRESS_FILE, progress)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """They are part of `save_model`."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing yet: the optimizer, restored in the same pass, is not made."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        directory = Path(checkpoint)
        load_state_(directory, self._tensors(), self.optimizer)
        progress = read_json_mapping(directory / PROGRESS_FILE, what="the position of a training")
        self._stream.load_state_dict(progress["stream"])
        self.lr_scheduler.load_state_dict(progress["schedule"])
        for group, numbers in zip(self.optimizer.param_groups, progress["groups"], strict=True):
            group.update(numbers)
        for extension in self._extensions:
            extension.load(directory)

    def _tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds, by name."""
        named: dict[str, torch.Tensor] = dict(self.accelerator.unwrap_model(self.model).named_parameters())
        for extension in self._extensions:
            named |= extension.tensors()
        return named


def _numbers(group: Mapping[str, object]) -> dict[str, int | float]:
    """The settings of a parameter group that a schedule or an optimizer may move."""
    return {name: value for name, value in group.items() if isinstance(value, int | float)}


def _log_of(history: Sequence[Mapping[str, Any]], domains: Sequence[str]) -> TrainingLog:
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
