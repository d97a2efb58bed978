"""A power law of how far the optimizer has moved, towards the teacher, with a term for the learning rate.

The student's loss on held-out text after n steps, in nats per token:

    y(n) = y(0) - G + G z(n)        z(n) = a (1 + S(n) / tau)^-alpha + k r(n) + noise

    G      y(0) minus the teacher's loss: what there is to learn
    S(n)   sum of the learning rates so far;  r(n) the current one over the peak
    a      share of G at which the law begins: the first steps, which mend the largest faults, fall faster
    tau    the S at which the power law bends;  alpha its exponent
    k      share of G that a high learning rate keeps away, and that its decay brings
    noise  normal, its variance proportional to r(n), which a floor keeps from vanishing; what lies close
           together in ln n deviates alike

A power law of the summed learning rate with a term for its decay is the form of arXiv 2408.11029; here the
decay's term is the rate itself, and the law ends at the teacher's loss, which is known.

ln alpha, ln tau, a and k of a run are taken to be drawn from one normal distribution, which recorded runs
tell, correlations included. ln alpha, ln tau and ln noise take the values of a grid; for each cell a and k
have a normal posterior in closed form. The grid is laid anew where the posterior turns out to be. The
forecast is the mixture of all, so there is no optimizer and no sampling, and a curve gives the same forecast
on every machine. Everything is computed in float64.

Legend: C cells of the grid, n points of the curve, p = 2 coefficients (a, k).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp, ndtr

from compressor.forecast.priors import Priors
from compressor.forecast.schedule import Array, RateSchedule, Steps

# Points of the grid along ln alpha, ln tau (both turned to where the posterior is long) and ln noise.
_POINTS = (13, 13, 5)
# The grid first covers so many deviations of the priors, then, anew each time, of the posterior.
_REACH, _PASSES = 3.0, 3
# Below this share of the peak rate the noise falls no further.
_LOWEST_RATE = 0.1
# Deviations from the law last: their correlation falls by 1/e over such a difference of ln steps.
_MEMORY = 0.3


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """The grid after a curve was seen.

    Attributes:
        log_weights: `[C]`, normalised.
        cells: `[C, 3]` of ln alpha, ln tau and ln noise.
        mean: `[C, p]` of a and k.
        covariance: `[C, p, p]`.
    """

    log_weights: Array
    cells: Array
    mean: Array
    covariance: Array

    @property
    def noise(self) -> Array:
        """`[C]` standard deviation at the peak rate, as a share of G."""
        return np.exp(self.cells[:, 2])

    def remaining(self, schedule: RateSchedule, step: int) -> tuple[Array, Array]:
        """Mean and variance `[C]` of the share of G that is left after a step, noise left out."""
        row = _design(schedule, np.array([step]), self.cells)[:, 0]
        mean = np.einsum("cp,cp->c", row, self.mean)
        return mean, np.einsum("cp,cpq,cq->c", row, self.covariance, row)

    def measured(self, schedule: RateSchedule, step: int) -> tuple[Array, Array]:
        """Mean and variance `[C]` of what will be measured after a step."""
        mean, variance = self.remaining(schedule, step)
        return mean, variance + (self.noise * _noise_shape(schedule, np.array([step]))) ** 2


def posterior_of(steps: Steps, remaining: Array, schedule: RateSchedule, priors: Priors) -> Posterior:
    """What a curve says of the parameters.

    Args:
        steps: `[n]` optimizer steps above 0.
        remaining: `[n]` share of G left after each.
        schedule: Of the training.
        priors: Of recorded runs.
    """
    centre = np.array([*priors.mean[:2], priors.log_noise.mean])
    axes = np.zeros((3, 3))
    axes[:2, :2] = np.linalg.cholesky(np.array(priors.covariance)[:2, :2])
    axes[2, 2] = priors.log_noise.sd
    spacing = 2 * _REACH / (np.array(_POINTS) - 1)
    for _ in range(_PASSES):
        cells = centre + _lattice() @ axes.T
        found = _on_cells(cells, steps, remaining, schedule, priors)
        weights = np.exp(found.log_weights)
        centre = weights @ cells
        away = cells - centre
        # What lies between two cells is not seen: the spread is never taken for less than half of that.
        unseen = axes @ np.diag((spacing / 2) ** 2) @ axes.T / 4
        axes = np.linalg.cholesky((weights[:, None] * away).T @ away + unseen)
    return found


def _lattice() -> Array:
    """Points `[C, 3]` of the grid in deviations."""
    spans = (np.linspace(-_REACH, _REACH, points) for points in _POINTS)
    return np.stack([axis.ravel() for axis in np.meshgrid(*spans, indexing="ij")], axis=1)


def _on_cells(
    cells: Array, steps: Steps, remaining: Array, schedule: RateSchedule, priors: Priors
) -> Posterior:
    """The posterior of `posterior_of` on given cells, each equally large."""
    whiten = np.linalg.inv(np.linalg.cholesky(_noise_covariance(schedule, steps)))
    X = whiten @ _design(schedule, steps, cells)
    y = whiten @ remaining
    noise = np.exp(cells[:, 2])
    prior_mean, prior_covariance = _given(cells, priors)
    prior_precision = np.linalg.inv(prior_covariance)
    precision = prior_precision + X.transpose(0, 2, 1) @ X / noise[:, None, None] ** 2
    covariance = np.linalg.inv(precision)
    moved = prior_mean @ prior_precision + (y @ X) / noise[:, None] ** 2
    mean = (covariance @ moved[:, :, None])[:, :, 0]
    # ln of the evidence: squares of residuals and coefficients at the posterior mean, and determinants.
    residuals = y - (X @ mean[:, :, None])[:, :, 0]
    away = mean - prior_mean
    log_evidence = -0.5 * (
        (residuals**2).sum(1) / noise**2
        + ((away @ prior_precision) * away).sum(1)
        + np.linalg.slogdet(precision)[1]
    ) - len(steps) * np.log(noise)
    offset = cells[:, :2] - np.array(priors.mean[:2])
    shape_precision = np.linalg.inv(np.array(priors.covariance)[:2, :2])
    log_prior = -0.5 * (
        ((offset @ shape_precision) * offset).sum(1)
        + ((cells[:, 2] - priors.log_noise.mean) / priors.log_noise.sd) ** 2
    )
    log_weights = log_prior + log_evidence
    return Posterior(
        log_weights=log_weights - logsumexp(log_weights), cells=cells, mean=mean, covariance=covariance
    )


def quantiles(log_weights: Array, mean: Array, variance: Array, shares: tuple[float, ...]) -> list[float]:
    """Quantiles of a mixture of normal distributions, each `[C]`."""
    weights, deviation = np.exp(log_weights), np.sqrt(variance)
    low, high = float((mean - 12 * deviation).min()), float((mean + 12 * deviation).max())

    def below(value: float, share: float) -> float:
        return float(weights @ ndtr((value - mean) / deviation)) - share

    return [float(brentq(below, low, high, args=(share,), xtol=1e-12)) for share in shares]


def _given(cells: Array, priors: Priors) -> tuple[Array, Array]:
    """Mean `[C, p]` and covariance `[p, p]` of a and k, once ln alpha and ln tau are known."""
    mean, covariance = np.array(priors.mean), np.array(priors.covariance)
    slope = covariance[2:, :2] @ np.linalg.inv(covariance[:2, :2])
    return mean[2:] + (cells[:, :2] - mean[:2]) @ slope.T, covariance[2:, 2:] - slope @ covariance[:2, 2:]


def _design(schedule: RateSchedule, steps: Steps, cells: Array) -> Array:
    """What a and k are multiplied by after each step, `[C, n, p]`."""
    alpha, tau = np.exp(cells[:, :2]).T
    travelled, current = schedule.travelled()[steps], schedule.current()[steps]
    power = (1 + travelled[None] / tau[:, None]) ** -alpha[:, None]
    return np.stack([power, np.broadcast_to(current, power.shape)], axis=2)


def _noise_shape(schedule: RateSchedule, steps: Steps) -> Array:
    """The noise after each step over that at the peak rate, `[n]`."""
    return np.sqrt(np.maximum(schedule.current()[steps], _LOWEST_RATE))


def _noise_covariance(schedule: RateSchedule, steps: Steps) -> Array:
    """Covariance of the measurements `[n, n]`, in variances of one at the peak rate."""
    apart = np.abs(np.subtract.outer(np.log(steps), np.log(steps)))
    shape = _noise_shape(schedule, steps)
    return np.exp(-apart / _MEMORY) * np.outer(shape, shape)
