"""The forecast against brute force, drawn parameters, transformers' schedule, and curves of known end."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

from compressor.forecast import model
from compressor.forecast.forecast import checked, forecast_end, make_forecast, obstacle_to
from compressor.forecast.learn import RecordedRun, learn_priors, moments
from compressor.forecast.model import Array, posterior_of, quantiles
from compressor.forecast.priors import Normal, Priors
from compressor.forecast.record import ValidationCurve
from compressor.forecast.schedule import RateSchedule
from compressor.pipeline.card import forecast_lines
from compressor.training.validation import validation_steps

SCHEDULE = RateSchedule(max_steps=160, warmup_steps=16, learning_rate=1e-3, min_learning_rate_ratio=0.1)
DOUBLED = replace(SCHEDULE, max_steps=320, warmup_steps=32)
SD = np.array([0.3, 0.5, 0.1, 0.02])
CORRELATION = np.array([[1, 0.6, -0.3, 0], [0.6, 1, -0.4, 0.1], [-0.3, -0.4, 1, 0.2], [0, 0.1, 0.2, 1]])
COVARIANCE = CORRELATION * np.outer(SD, SD)
PRIORS = Priors(
    mean=(math.log(0.5), math.log(0.01), 0.9, 0.03),
    covariance=tuple(map(tuple, COVARIANCE.tolist())),
    log_noise=Normal(mean=math.log(0.005), sd=0.5),
    num_runs=5,
)
START, TEACHER = 8.0, 3.0
PARAMETERS = (math.log(0.45), math.log(0.012), 0.95, 0.04)


def travelled_and_rate(step: int, schedule: RateSchedule) -> tuple[float, float]:
    """The summed learning rate and the last one over the peak, by a loop over steps."""
    travelled, rate = 0.0, 0.0
    for index in range(step):
        if index < schedule.warmup_steps:
            rate = index / schedule.warmup_steps
        else:
            progress = (index - schedule.warmup_steps) / (schedule.max_steps - schedule.warmup_steps)
            ratio = schedule.min_learning_rate_ratio
            rate = ratio + (1 - ratio) * (1 + math.cos(math.pi * progress)) / 2
        travelled += schedule.learning_rate * rate
    return travelled, rate


def true_share(step: int, schedule: RateSchedule, parameters: Array) -> Array:
    """The formula for parameters `[..., 4]`, without noise."""
    log_alpha, log_tau, a, k = np.moveaxis(np.asarray(parameters, dtype=np.float64), -1, 0)
    travelled, rate = travelled_and_rate(step, schedule)
    share: Array = a * (1 + travelled / np.exp(log_tau)) ** -np.exp(log_alpha) + k * rate
    return share


def true_loss(step: int, schedule: RateSchedule, parameters: Array) -> float:
    return TEACHER + (START - TEACHER) * float(true_share(step, schedule, parameters))


def deviation(step: int, noise: float) -> float:
    """Of a measurement's share: the variance is proportional to the learning rate, down to a tenth of it."""
    return noise * math.sqrt(max(0.1, travelled_and_rate(step, SCHEDULE)[1]))


def noise_covariance(steps: list[int], noise: float) -> Array:
    """Of the measurements' shares: a correlation of 1/e is left where ln steps differ by 0.3."""
    return np.array(
        [
            [
                deviation(one, noise) * deviation(other, noise) * math.exp(-abs(math.log(one / other)) / 0.3)
                for other in steps
            ]
            for one in steps
        ]
    )


def curve_of(parameters: Array, *, noise: float = 0.0, seed: int = 0) -> ValidationCurve:
    """A training's curve; `noise` as a share of the gap."""
    draw = np.random.default_rng(seed)
    steps = validation_steps(SCHEDULE)
    gap = START - TEACHER
    noises = draw.multivariate_normal(np.zeros(len(steps)), noise_covariance(list(steps), noise))
    loss = [
        true_loss(step, SCHEDULE, parameters) + gap * float(each)
        for step, each in zip(steps, noises, strict=True)
    ]
    return ValidationCurve(num_tokens=64, teacher_loss=TEACHER, steps=(0, *steps), loss=(START, *loss))


def drawn_parameters(seed: int) -> Array:
    found: Array = np.random.default_rng(seed).multivariate_normal(PRIORS.mean, COVARIANCE)
    return found


def test_the_schedule_is_the_trainers() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=SCHEDULE.learning_rate)
    scheduler = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer,
        num_warmup_steps=SCHEDULE.warmup_steps,
        num_training_steps=SCHEDULE.max_steps,
        min_lr_rate=SCHEDULE.min_learning_rate_ratio,
    )
    rates = []
    for _ in range(SCHEDULE.max_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert SCHEDULE.current()[1:] * SCHEDULE.learning_rate == pytest.approx(rates, rel=1e-12)
    assert SCHEDULE.travelled()[-1] == pytest.approx(sum(rates), rel=1e-12)


def test_the_posterior_is_that_of_a_brute_force_integration(monkeypatch: pytest.MonkeyPatch) -> None:
    """For every cell, a and k summed over a fine grid of their own, as wide as eight deviations."""
    monkeypatch.setattr(model, "_POINTS", (3, 3, 2))
    curve = curve_of(drawn_parameters(3), noise=0.004, seed=3).until(40)
    settled = [index for index, step in enumerate(curve.steps) if step >= 16]
    steps = np.array([curve.steps[index] for index in settled])
    remaining = (np.array([curve.loss[index] for index in settled]) - TEACHER) / (START - TEACHER)
    found = posterior_of(steps, remaining, SCHEDULE, PRIORS)
    prior = multivariate_normal(PRIORS.mean, COVARIANCE)

    log_mass, ends, squares = [], [], []
    for cell, (log_alpha, log_tau, log_noise) in enumerate(found.cells):
        # Where the grid lies does not decide the sums, if it covers all that counts.
        reach = 8 * np.sqrt(np.diagonal(found.covariance[cell]))
        grid = [np.linspace(at - far, at + far, 161) for at, far in zip(found.mean[cell], reach, strict=True)]
        a, k = np.meshgrid(*grid, indexing="ij")
        parameters = np.stack([np.full_like(a, log_alpha), np.full_like(a, log_tau), a, k], axis=-1)
        log_joint = prior.logpdf(parameters) + norm.logpdf(
            log_noise, PRIORS.log_noise.mean, PRIORS.log_noise.sd
        )
        shares = np.stack([true_share(step, SCHEDULE, parameters) for step in steps.tolist()], axis=-1)
        noises = multivariate_normal(cov=noise_covariance(steps.tolist(), math.exp(log_noise)))
        log_joint = log_joint + noises.logpdf(remaining - shares)
        mass = np.exp(log_joint - log_joint.max())
        log_mass.append(math.log(mass.sum() * reach.prod()) + log_joint.max())
        end = true_share(SCHEDULE.max_steps, SCHEDULE, parameters)
        ends.append((mass * end).sum() / mass.sum())
        squares.append((mass * (end - ends[-1]) ** 2).sum() / mass.sum())
    expected = np.exp(np.array(log_mass) - max(log_mass))
    mean, variance = found.remaining(SCHEDULE, SCHEDULE.max_steps)
    assert np.exp(found.log_weights) == pytest.approx(expected / expected.sum(), rel=1e-6, abs=1e-9)
    assert mean == pytest.approx(np.array(ends), rel=1e-6)
    assert variance == pytest.approx(np.array(squares), rel=1e-4)


def test_the_interval_is_that_of_parameters_drawn_and_weighted() -> None:
    """The whole posterior: half a million draws from the priors, each weighted by how well it fits."""
    curve = curve_of(drawn_parameters(4), noise=0.02, seed=4).until(40)
    log_noise = Normal(mean=math.log(0.02), sd=0.3)
    draw = np.random.default_rng(0)
    parameters = draw.multivariate_normal(PRIORS.mean, COVARIANCE, size=500_000)
    noise = np.exp(draw.normal(log_noise.mean, log_noise.sd, size=500_000))
    settled = [step for step in curve.steps if step >= SCHEDULE.warmup_steps]
    values = (np.array(curve.loss[-len(settled) :]) - TEACHER) / (START - TEACHER)
    shares = np.stack([true_share(step, SCHEDULE, parameters) for step in settled], axis=-1)
    precision = np.linalg.inv(noise_covariance(settled, 1.0))
    away = (values - shares) / noise[:, None]
    log_weights = -0.5 * np.einsum("dm,mn,dn->d", away, precision, away) - len(settled) * np.log(noise)
    weights = np.exp(log_weights - log_weights.max())
    end = true_share(160, SCHEDULE, parameters) + noise * deviation(160, 1.0) * draw.normal(size=500_000)
    order = np.argsort(end)
    below = np.cumsum(weights[order]) / weights.sum()
    low, median, high = (
        TEACHER + (START - TEACHER) * end[order][np.searchsorted(below, share)] for share in (0.05, 0.5, 0.95)
    )
    found = forecast_end(curve, SCHEDULE, PRIORS.model_copy(update={"log_noise": log_noise}))
    assert weights.sum() ** 2 / (weights**2).sum() > 2000
    assert (found.low, found.loss, found.high) == pytest.approx((low, median, high), abs=0.04 * (high - low))


def test_priors_are_found_again_from_runs_that_were_drawn_from_them() -> None:
    """Thirty runs with little noise: the mean and the covariance of their own true parameters."""
    true = np.array([drawn_parameters(seed) for seed in range(30)])
    runs = [
        RecordedRun(curve=curve_of(parameters, noise=5e-4, seed=seed), schedule=SCHEDULE)
        for seed, parameters in enumerate(true)
    ]
    found = learn_priors(runs)
    covariance = np.cov(true.T)
    assert (np.array(found.mean) - true.mean(0)) / SD == pytest.approx(0, abs=0.25)
    learnt = np.sqrt(np.diagonal(found.covariance))
    assert learnt / np.sqrt(np.diagonal(covariance)) == pytest.approx(1, rel=0.3)
    assert found.num_runs == 30


def test_moments_are_those_of_the_mixture() -> None:
    """Mean and covariance of draws from the mixture of all cells."""
    curve = curve_of(drawn_parameters(6), noise=0.01, seed=6).until(60)
    steps = np.array([step for step in curve.steps if step >= 16])
    remaining = (np.array(curve.loss[-len(steps) :]) - TEACHER) / (START - TEACHER)
    found = posterior_of(steps, remaining, SCHEDULE, PRIORS)
    draw = np.random.default_rng(0)
    cells = draw.choice(len(found.cells), size=100_000, p=np.exp(found.log_weights))
    factors = np.linalg.cholesky(found.covariance)[cells]
    coefficients = found.mean[cells] + np.einsum("npq,nq->np", factors, draw.normal(size=(100_000, 2)))
    sample = np.concatenate([found.cells[cells, :2], coefficients, found.cells[cells, 2:]], axis=1)
    mean, covariance = moments(found)
    spread = np.sqrt(np.diagonal(covariance))
    assert (mean - sample.mean(0)) / spread == pytest.approx(0, abs=0.02)
    assert (covariance - np.cov(sample.T)) / np.outer(spread, spread) == pytest.approx(0, abs=0.03)


def test_quantiles_are_those_of_many_draws() -> None:
    log_weights = np.log([0.2, 0.5, 0.3])
    mean, variance = np.array([0.0, 1.0, 4.0]), np.array([1.0, 0.25, 4.0])
    draw = np.random.default_rng(0)
    which = draw.choice(3, size=400_000, p=np.exp(log_weights))
    values = draw.normal(mean[which], np.sqrt(variance[which]))
    shares = (0.05, 0.5, 0.95)
    assert quantiles(log_weights, mean, variance, shares) == pytest.approx(
        np.quantile(values, shares), abs=0.02
    )


def test_a_curve_without_noise_leads_to_its_end_and_to_that_of_twice_the_tokens() -> None:
    """At half of the training, from the formula itself; the doubled one is computed step by step."""
    curve = curve_of(PARAMETERS)
    priors = PRIORS.model_copy(update={"log_noise": Normal(mean=math.log(5e-4), sd=0.2)})
    found = make_forecast(curve.until(80), SCHEDULE, priors, steps=curve.steps, doubled=DOUBLED)
    assert found.end.loss == pytest.approx(curve.loss[-1], abs=0.02)
    assert found.end.contains(curve.loss[-1])
    alone = forecast_end(curve.until(80), SCHEDULE, priors)
    assert found.end.model_dump() == pytest.approx(alone.model_dump(), rel=1e-9)
    expected = true_loss(320, DOUBLED, PARAMETERS)
    assert found.twice.step == 320
    assert found.twice.contains(expected)
    assert found.twice.loss == pytest.approx(expected, abs=0.05)


def test_intervals_contain_as_many_ends_as_they_say() -> None:
    """Curves drawn from the priors: nine of ten ends lie in a 90 % interval made at a quarter."""
    inside = 0
    for seed in range(60):
        curve = curve_of(drawn_parameters(seed), noise=0.005, seed=seed)
        inside += forecast_end(curve.until(40), SCHEDULE, PRIORS).contains(curve.loss[-1])
    assert 48 <= inside <= 60


def test_more_of_a_curve_narrows_the_interval() -> None:
    curve = curve_of(drawn_parameters(1), noise=0.004)
    ends = [forecast_end(curve.until(step), SCHEDULE, PRIORS) for step in (20, 40, 80, 140)]
    widths = [end.high - end.low for end in ends]
    assert widths == sorted(widths, reverse=True)


def test_a_finished_training_is_compared_with_its_own_forecast() -> None:
    curve = curve_of(drawn_parameters(5), noise=0.004, seed=5)
    found = checked(curve, SCHEDULE, PRIORS, doubled=DOUBLED)
    assert found.at_quarter is not None
    assert found.at_quarter.made_at == 40
    assert [one.step for one in found.at_quarter.path] == [step for step in curve.steps if step > 40]
    assert found.contained is (found.at_quarter.end.low <= curve.loss[-1] <= found.at_quarter.end.high)
    far = curve.model_copy(update={"loss": (*curve.loss[:-1], 1.0)})
    assert checked(far, SCHEDULE, PRIORS, doubled=DOUBLED).contained is False


def test_a_curve_that_says_nothing_is_not_continued() -> None:
    curve = curve_of(drawn_parameters(5))
    rising = curve.model_copy(update={"loss": (START, *(START + 1 for _ in curve.loss[1:]))})
    assert "did not fall" in (obstacle_to(rising, SCHEDULE) or "")
    assert "too seldom" in (obstacle_to(curve.until(16), SCHEDULE) or "")
    assert obstacle_to(curve, SCHEDULE) is None
    assert "did not fall" in (checked(rising, SCHEDULE, PRIORS, doubled=DOUBLED).reason or "")


@pytest.mark.parametrize(
    ("teacher_loss", "reason"),
    [
        (None, "is not known"),
        (START + 1, "had reached its teacher"),
        (START - 0.01, "had reached its teacher"),
    ],
)
def test_without_a_teachers_loss_ahead_nothing_is_forecast(teacher_loss: float | None, reason: str) -> None:
    curve = curve_of(drawn_parameters(2), noise=0.004).model_copy(update={"teacher_loss": teacher_loss})
    found = checked(curve, SCHEDULE, PRIORS, doubled=DOUBLED)
    assert reason in (found.reason or "")
    assert (found.validation, found.at_quarter, found.at_end) == (curve, None, None)


def test_a_student_that_passes_its_teacher_later_on_is_only_forecast_at_a_quarter() -> None:
    curve = curve_of(drawn_parameters(5), noise=0.004, seed=5)
    passed = curve.model_copy(update={"loss": (*curve.loss[:-1], TEACHER - 0.01)})
    found = checked(passed, SCHEDULE, PRIORS, doubled=DOUBLED)
    assert found.at_quarter is not None
    assert found.at_end is None
    assert "had reached its teacher" in (found.reason or "")
    lines = forecast_lines(found)
    assert len(lines) == 1
    assert f"{TEACHER - 0.01:.3f} nats" in lines[0]


@pytest.mark.parametrize("steps", [(0, 2, 1), (0, 1)])
def test_a_curve_with_steps_out_of_order_or_without_losses_is_refused(steps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one loss for each"):
        ValidationCurve(num_tokens=1, steps=steps, loss=(1.0, 1.0, 1.0))
