"""What a training records of its held-out loss: the curve, what was forecast of it, and what came."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import model_validator

from compressor.core.records import Record

if TYPE_CHECKING:
    from compressor.forecast.schedule import RateSchedule


class ValidationCurve(Record):
    """A student's loss on the same held-out text, measured all over a training.

    Attributes:
        num_tokens: Of the held-out text.
        teacher_loss: The teacher's nats per token; None where it is not in memory, or is trained as well.
        steps: Optimizer steps, the first being 0, before any training.
        loss: The student's nats per token after each, which is its log-perplexity.
    """

    num_tokens: int
    teacher_loss: float | None = None
    steps: tuple[int, ...] = ()
    loss: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _one_loss_a_step(self) -> ValidationCurve:
        if len(self.steps) != len(self.loss) or list(self.steps) != sorted(set(self.steps)):
            raise ValueError("a curve has one loss for each of its rising steps")
        return self

    def until(self, step: int) -> ValidationCurve:
        """The curve as it was after a step."""
        count = sum(each <= step for each in self.steps)
        return self.model_copy(update={"steps": self.steps[:count], "loss": self.loss[:count]})

    def until_quarter(self, schedule: RateSchedule) -> ValidationCurve:
        """The curve as it was when a quarter of its training was first measured."""
        quarter = schedule.quarter_step
        return self.until(next((step for step in self.steps if step >= quarter), quarter))

    def and_then(self, step: int, loss: float) -> ValidationCurve:
        """The curve with one more measurement."""
        return self.model_copy(update={"steps": (*self.steps, step), "loss": (*self.loss, loss)})


class Predicted(Record):
    """A predicted held-out loss in nats per token: its median and its interval."""

    step: int
    loss: float
    low: float
    high: float

    def contains(self, loss: float) -> bool:
        """Whether a measured loss lies in the interval."""
        return self.low <= loss <= self.high


class Forecast(Record):
    """What a curve was forecast to become.

    Attributes:
        made_at: The step after which the forecast was made.
        share: Of the interval, such as 0.9.
        path: The rest of this training, its end last; empty where nothing of it was left.
        twice: The end of a training with twice the tokens, in the same batches at the same peak rate.
    """

    made_at: int
    share: float
    path: tuple[Predicted, ...]
    twice: Predicted

    @property
    def end(self) -> Predicted:
        """The end of the training, which lay ahead."""
        return self.path[-1]


class TrainingForecast(Record):
    """The held-out curve of a training, the forecast made at a quarter of it, and what became of that.

    Attributes:
        validation: The curve; None where there is a reason.
        at_quarter: Made from the first quarter of the training.
        at_end: Made from the whole curve: what twice the tokens would have bought; None if there is a reason.
        contained: Whether the measured end lies in the interval that was forecast at a quarter.
        reason: Why there is no curve, or one of the forecasts is not there.
    """

    validation: ValidationCurve | None = None
    at_quarter: Forecast | None = None
    at_end: Forecast | None = None
    contained: bool | None = None
    reason: str | None = None
