"""Held-out losses and forecast of a distillation: what is measured while it runs, shown and recorded.

The text is the held-out part of the training text, of all its domains together as many sequences as cost a
twentieth of the training at most, but of each at least `MIN_TOKENS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from compressor.core.console import Console
from compressor.core.errors import UsageError
from compressor.data.packing import read_windows
from compressor.data.tokenise import TokenArray
from compressor.distillation.domain_losses import held_out_loss
from compressor.distillation.module import DistillationModule
from compressor.distillation.training import Training
from compressor.forecast.forecast import checked, make_forecast, obstacle_to
from compressor.forecast.priors import packaged_priors
from compressor.forecast.record import Predicted, TrainingForecast, ValidationCurve
from compressor.forecast.schedule import RateSchedule
from compressor.models.tokenizer import load_tokenizer
from compressor.planning.schedule import warmup_steps
from compressor.recipe.recipe import Distill, Domain
from compressor.training.config import TrainingConfig
from compressor.training.validation import NUM_VALIDATIONS, Validation

# Shorter trainings are over before anything can be said of their end.
MIN_STEPS = NUM_VALIDATIONS
MIN_TOKENS, MAX_SEQUENCES = 512, 64
# A forward pass costs a third of a student's training step on the same text.
_SHARE_OF_TRAINING, _PASSES_PER_STEP = 0.05, 3


@dataclass(frozen=True, kw_only=True)
class Watched:
    """The measurements of one training, if there are any, and their report.

    Attributes:
        schedule: Of the training.
        doubled: Of one with twice the tokens.
        validation: What measures.
        reason: Why nothing does.
    """

    schedule: RateSchedule
    doubled: RateSchedule
    validation: Validation | None = None
    reason: str | None = None

    @property
    def extensions(self) -> list[Validation]:
        """What the training loop calls."""
        return [self.validation] if self.validation else []

    def report(self) -> dict[str, object]:
        """The `TrainingForecast` of the training, which is over."""
        curve = self.validation.curve if self.validation else None
        if curve is None or not curve.steps:
            reason = self.reason or "the training was begun by a version that measures nothing on the way"
            return TrainingForecast(reason=reason).to_json()
        return checked(curve, self.schedule, packaged_priors(), doubled=self.doubled).to_json()


def watch_training(training: Training, module: DistillationModule) -> Watched:
    """Prepare what a training measures on its way; where that says nothing, the reason."""
    config, plan = training.config, training.plan
    schedule = schedule_of(plan)
    watched = Watched(schedule=schedule, doubled=doubled(schedule, config))
    if plan.max_steps < MIN_STEPS:
        return replace(watched, reason=f"the training has fewer than {MIN_STEPS} steps")
    if config.loss_on != "all":
        return replace(watched, reason="the loss is computed on responses, held-out text has none")
    domains = config.mixture()
    tokenizer = load_tokenizer(training.source.path, trust_remote_code=training.context.trust_remote_code)
    size = num_sequences(plan, config.context_length, len(domains))
    try:
        windows = [
            read_windows(domain.data, "held_out", tokenizer, size=size, seq_len=config.context_length)
            for domain in domains
        ]
    except UsageError as error:
        return replace(watched, reason=f"held-out text: {error.what}")
    loss = partial(_mean_loss, module, windows, domains, plan)
    validation = Validation(
        partial(loss, of_teacher=False),
        partial(loss, of_teacher=True)
        if module.teacher is not None and not module.corrects_teacher
        else None,
        num_tokens=sum(found.size for found in windows),
        schedule=schedule,
        show=partial(_show, watched, training.context.console),
    )
    return replace(watched, validation=validation)


def schedule_of(plan: TrainingConfig) -> RateSchedule:
    """The learning rates of a training."""
    return RateSchedule(
        max_steps=plan.max_steps,
        warmup_steps=plan.warmup_steps,
        learning_rate=plan.learning_rate,
        min_learning_rate_ratio=plan.min_learning_rate_ratio,
    )


def doubled(schedule: RateSchedule, config: Distill) -> RateSchedule:
    """The learning rates of a training with twice the tokens, in the same batches at the same peak rate."""
    steps = 2 * schedule.max_steps
    return replace(schedule, max_steps=steps, warmup_steps=warmup_steps(config, steps))


def num_sequences(plan: TrainingConfig, context_length: int, num_domains: int) -> int:
    """Held-out sequences of every domain."""
    affordable = _SHARE_OF_TRAINING * _PASSES_PER_STEP * plan.max_steps * plan.batch_size / NUM_VALIDATIONS
    share = min(MAX_SEQUENCES, int(affordable / num_domains))
    return max(-(-MIN_TOKENS // context_length), share)


def _mean_loss(
    module: DistillationModule,
    windows: Sequence[TokenArray],
    domains: Sequence[Domain],
    plan: TrainingConfig,
    *,
    of_teacher: bool,
) -> float:
    """One model's nats per token over the domains by their weights, without dropout."""
    was_training = module.student.training
    module.student.eval()
    try:
        losses = [
            held_out_loss(module, windows, plan, index, of_teacher=of_teacher)
            for index in range(len(domains))
        ]
    finally:
        module.student.train(was_training)
    return float(np.average(losses, weights=[domain.weight for domain in domains]))


def _show(watched: Watched, console: Console, curve: ValidationCurve) -> None:
    """Say how the training does, and from a quarter of it on where it will end."""
    schedule = watched.schedule
    step, last = curve.steps[-1], schedule.max_steps
    line = f"  held-out loss {curve.loss[-1]:.3f} after {step} of {last} steps"
    if schedule.quarter_step <= step < last and obstacle_to(curve, schedule) is None:
        found = make_forecast(curve, schedule, packaged_priors(), steps=(last,), doubled=watched.doubled)
        line += f"; forecast: {_worded(found.end)} at the end, {_worded(found.twice)} with twice the tokens"
    console.info(line)


def _worded(predicted: Predicted) -> str:
    return f"{predicted.loss:.3f} ({predicted.low:.3f} to {predicted.high:.3f})"
