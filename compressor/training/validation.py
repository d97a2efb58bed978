"""The loss on the same held-out text at steps all over a training: how good the student is so far.

Of `NUM_VALIDATIONS`, nine lie between the warm-up and the first quarter of the training: what a forecast is
made from. A few lie in the warm-up, the others after the quarter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from compressor.core.errors import VerificationError
from compressor.core.json_files import as_record, read_json
from compressor.core.processes import is_main
from compressor.forecast.record import ValidationCurve
from compressor.forecast.schedule import RateSchedule
from compressor.runs.artifact import write_json
from compressor.training.extension import TrainingExtension

_IN_WARMUP, _TO_QUARTER, _TO_END = 3, 9, 12
NUM_VALIDATIONS = _IN_WARMUP + _TO_QUARTER + _TO_END
STATE_FILE = "validation.json"

# Mean cross-entropy in nats per token on the held-out text; the same number on every process.
Evaluate = Callable[[], float]


def validation_steps(schedule: RateSchedule) -> tuple[int, ...]:
    """The steps after which the loss is measured, evenly in each part; quarter and end are among them."""
    quarter = schedule.quarter_step
    warm = min(schedule.warmup_steps, quarter)
    parts = ((0, warm, _IN_WARMUP), (warm, quarter, _TO_QUARTER), (quarter, schedule.max_steps, _TO_END))
    found = (np.linspace(begin, end, count + 1)[1:] for begin, end, count in parts)
    return tuple(sorted({max(1, round(step)) for part in found for step in part}))


class Validation(TrainingExtension):
    """Measures the loss before the training and after `validation_steps`, and shows each curve so far."""

    def __init__(
        self,
        evaluate: Evaluate,
        evaluate_teacher: Evaluate | None,
        *,
        num_tokens: int,
        schedule: RateSchedule,
        show: Callable[[ValidationCurve], None],
    ) -> None:
        """Set up; nothing is measured yet.

        Args:
            evaluate: The student's loss; neither it nor `evaluate_teacher` may draw random numbers.
            evaluate_teacher: The teacher's, asked once; None where none stays in memory as it is.
            num_tokens: Of the held-out text.
            schedule: Of the training.
            show: Is given the curve after every measurement.
        """
        self._evaluate, self._evaluate_teacher, self._show = evaluate, evaluate_teacher, show
        self._steps = frozenset(validation_steps(schedule))
        self.curve = ValidationCurve(num_tokens=num_tokens)

    def before_training(self) -> None:
        """Measure both models as they are.

        Raises:
            VerificationError: for a loss that is not finite.
        """
        if self._evaluate_teacher is not None:
            loss = _finite(self._evaluate_teacher(), 0, "teacher")
            self.curve = self.curve.model_copy(update={"teacher_loss": loss})
        self._measure(0)

    def after_step(self, step: int) -> None:
        """Measure where it is time to.

        Raises:
            VerificationError: for a loss that is not finite.
        """
        if step in self._steps and self.curve.steps:
            self._measure(step)

    def save(self, directory: Path) -> None:
        """Write the curve into a checkpoint."""
        if is_main():
            write_json(directory / STATE_FILE, self.curve.to_json())

    def load(self, directory: Path) -> None:
        """Take the curve up again; a checkpoint without one leaves the rest of the training unmeasured."""
        file = directory / STATE_FILE
        if file.is_file():
            what = "the held-out losses of a training"
            self.curve = as_record(ValidationCurve, read_json(file, what=what), what=what, where=file)

    def _measure(self, step: int) -> None:
        self.curve = self.curve.and_then(step, _finite(self._evaluate(), step, "student"))
        self._show(self.curve)


def _finite(loss: float, step: int, role: str) -> float:
    if not math.isfinite(loss):
        raise VerificationError(
            f"the {role}'s loss on held-out text is not finite",
            where=f"step {step}",
            found=loss,
            hint="lower the learning rate, or look for damaged text in the held-out part",
        )
    return loss
