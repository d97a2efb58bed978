"""The forecast of a training from its curve so far: the end for the planned tokens, and for twice as many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compressor.forecast.model import Posterior, posterior_of, quantiles
from compressor.forecast.priors import Priors
from compressor.forecast.record import Forecast, Predicted, TrainingForecast, ValidationCurve
from compressor.forecast.schedule import RateSchedule

SHARE = 0.9
# Measurements since the warm-up that a forecast needs; with fewer it would be the recorded runs' alone.
MIN_MEASUREMENTS = 4


def obstacle_to(curve: ValidationCurve, schedule: RateSchedule) -> str | None:
    """Why nothing can be forecast from a curve, or None.

    The law ends at the teacher's loss: forecast with a guess in its place, most ends of recorded runs lie
    outside their intervals, and so do those of students that fall below it.
    """
    settled = _settled(curve, schedule)
    if len(settled) < MIN_MEASUREMENTS or min(curve.loss[index] for index in settled) >= curve.loss[0]:
        return "the held-out loss was measured too seldom, or did not fall, between warm-up and first quarter"
    if curve.teacher_loss is None:
        return "the teacher's loss, where the fall would end, is not known: no teacher that stays as it is"
    if min(curve.loss[0], curve.loss[-1]) <= curve.teacher_loss:
        return "the student had reached its teacher's loss, and nothing says how far below it the fall goes"
    return None


def make_forecast(
    curve: ValidationCurve,
    schedule: RateSchedule,
    priors: Priors,
    *,
    steps: Sequence[int],
    doubled: RateSchedule,
) -> Forecast:
    """Forecast the loss after each of `steps` that lie ahead, and at the end of a training twice as long.

    Args:
        curve: As far as it is known, with its first loss before any training; see `obstacle_to`.
        schedule: Of the training that is under way.
        priors: What recorded runs say.
        steps: In ascending order.
        doubled: Schedule of the training with twice the tokens.
    """
    now = curve.steps[-1]
    posterior = posterior_after(curve, schedule, priors)
    ahead = [step for step in steps if step > now]
    return Forecast(
        made_at=now,
        share=SHARE,
        path=tuple(_predicted(posterior, curve, schedule, step) for step in ahead),
        twice=_predicted(posterior, curve, doubled, doubled.max_steps),
    )


def forecast_end(curve: ValidationCurve, schedule: RateSchedule, priors: Priors) -> Predicted:
    """Forecast the loss at the end of the training alone."""
    posterior = posterior_after(curve, schedule, priors)
    return _predicted(posterior, curve, schedule, schedule.max_steps)


def posterior_after(curve: ValidationCurve, schedule: RateSchedule, priors: Priors) -> Posterior:
    """What a curve says of the parameters.

    Only measurements since the warm-up count: until then the optimizer's moments and the student's largest
    faults settle, by another law.
    """
    settled = _settled(curve, schedule)
    losses = np.array([curve.loss[index] for index in settled])
    steps = np.array([curve.steps[index] for index in settled], dtype=np.int64)
    remaining = 1 - (curve.loss[0] - losses) / gap_of(curve)
    return posterior_of(steps, remaining, schedule, priors)


def _settled(curve: ValidationCurve, schedule: RateSchedule) -> list[int]:
    """Positions of the measurements that count."""
    return [index for index, step in enumerate(curve.steps) if step > 0 and step >= schedule.warmup_steps]


def checked(
    curve: ValidationCurve, schedule: RateSchedule, priors: Priors, *, doubled: RateSchedule
) -> TrainingForecast:
    """The record of a training that is over: its forecast at a quarter beside its end."""
    early = curve.until_quarter(schedule)
    reason = obstacle_to(early, schedule)
    if reason is not None:
        return TrainingForecast(validation=curve, reason=reason)
    at_quarter = make_forecast(early, schedule, priors, steps=curve.steps, doubled=doubled)
    reason, at_end = obstacle_to(curve, schedule), None
    if reason is None:
        at_end = make_forecast(curve, schedule, priors, steps=curve.steps, doubled=doubled)
    return TrainingForecast(
        validation=curve,
        at_quarter=at_quarter,
        at_end=at_end,
        contained=at_quarter.end.contains(curve.loss[-1]),
        reason=reason,
    )


def gap_of(curve: ValidationCurve) -> float:
    """Nats per token between the untrained student and its teacher, whose loss is known."""
    assert curve.teacher_loss is not None, "see `obstacle_to`"
    return curve.loss[0] - curve.teacher_loss


def _predicted(posterior: Posterior, curve: ValidationCurve, schedule: RateSchedule, step: int) -> Predicted:
    """What will be measured after a step of `schedule`, in nats per token."""
    mean, variance = posterior.measured(schedule, step)
    tail = (1 - SHARE) / 2
    found = quantiles(posterior.log_weights, mean, variance, (tail, 0.5, 1 - tail))
    gap = gap_of(curve)
    low, loss, high = (curve.loss[0] - gap * (1 - share) for share in found)
    return Predicted(step=step, loss=loss, low=low, high=high)
