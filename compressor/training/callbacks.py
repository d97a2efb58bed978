"""What is called around the training loop: extensions, the display, completed checkpoints, reporters."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from compressor.core.console import Tick
from compressor.core.errors import DependencyError
from compressor.core.processes import barrier, is_main
from compressor.training.checkpoints import mark_complete
from compressor.training.extension import TrainingExtension

LOGGING_STEPS = 10
DOMAIN_LOSS = "loss/"
_MODULES = {"tensorboard": "tensorboardX"}


class Watch(TrainerCallback):
    """Shows step, loss (of every domain, where there are several), gradient norm, speed and time left."""

    def __init__(self, tick: Tick) -> None:
        """Show through this progress display."""
        self._tick = tick
        self._note = ""

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Take up the newest figures."""
        entry = state.log_history[-1] if state.log_history else {}
        if "loss" not in entry:
            return
        parts = [f"loss {entry['loss']:.4f}", f"grad norm {float(entry['grad_norm']):.2f}"]
        domains = {
            name.removeprefix(DOMAIN_LOSS): entry[name] for name in entry if name.startswith(DOMAIN_LOSS)
        }
        if len(domains) > 1:
            parts += [f"{name} {loss:.4f}" for name, loss in domains.items()]
        if "tokens_per_s" in entry:
            parts += [f"{entry['tokens_per_s']:,.0f} tokens/s", f"{_duration(entry['seconds_left'])} left"]
        if "utilisation" in entry:
            parts.append(f"{entry['utilisation']:.0%} of the peak rate")
        self._note = ", ".join(parts)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Advance the display."""
        self._tick(self._note, done=state.global_step)


class Extend(TrainerCallback):
    """Checks every step before the optimizer moves, and calls the extensions after it and at checkpoints.

    A checkpoint is marked when every process has written and synced every file; a killed save leaves no mark.
    """

    def __init__(self, extensions: Sequence[TrainingExtension], check: Callable[[], None]) -> None:
        """Call these, in order."""
        self._extensions, self._check = extensions, check

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Before the first step, of this process or of the training."""
        if state.global_step == 0:
            for extension in self._extensions:
                extension.before_training()

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """When a step's gradients are there."""
        self._check()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """After a step."""
        for extension in self._extensions:
            extension.after_step(state.global_step)

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """At a checkpoint."""
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        for extension in self._extensions:
            extension.save(checkpoint)
        barrier()
        if is_main():
            mark_complete(checkpoint)


class Curves(TrainerCallback):
    """Writes the logged figures as TensorBoard's events, in the order and at the time they are logged.

    The writer of transformers' own callback is a thread, which ends at a full disk, or when the clock is set
    back by weeks; the training then waits for it without end. Here the first is an error of the training.
    """

    def __init__(self, directory: Path) -> None:
        """Write one file into this directory, which is made when the training begins."""
        self._directory = directory

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Begin the file."""
        from tensorboardX.event_file_writer import EventsWriter

        self._directory.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(self._directory / "events"))

    def on_log(
        self, args: Any, state: TrainerState, control: Any, *, logs: Mapping[str, Any], **kwargs: Any
    ) -> None:
        """Add every number under the name that transformers gives it."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar
        from transformers.integrations import rewrite_logs

        for name, value in rewrite_logs(dict(logs)).items():
            if isinstance(value, (int, float)):
                figure = scalar(name, value)
                self._file.write_event(Event(wall_time=time.time(), step=state.global_step, summary=figure))
        self._file.flush()

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Close the file."""
        self._file.close()


def reporters(names: Sequence[str], directory: Path) -> list[TrainerCallback]:
    """Callbacks beside the Trainer's own integrations: TensorBoard's, into a directory of ours.

    Raises:
        DependencyError: for a reporter that is not installed.
    """
    for name in names:
        if find_spec(_MODULES.get(name, name)) is None:
            raise DependencyError(f"{name} is not installed", where="--report-to", hint=f"pip install {name}")
    return [Curves(directory)] if "tensorboard" in names and is_main() else []


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
