"""Priors from recorded runs.

The parameters of a run are taken to be drawn from one normal distribution over runs. Its mean and covariance
are found by expectation maximisation: what each whole curve says of its parameters under the distribution so
far, then the distribution of what was found. A broad distribution, counted as so many more runs, keeps a
handful of runs from vouching for more than they can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compressor.forecast.forecast import posterior_after
from compressor.forecast.model import Posterior
from compressor.forecast.priors import Normal, Priors
from compressor.forecast.record import ValidationCurve
from compressor.forecast.schedule import Array, RateSchedule

_BROAD_SD = (0.5, 1.2, 0.2, 0.03)
_BROAD = Priors(
    mean=(-0.4, -5.0, 0.8, 0.03),
    covariance=tuple(map(tuple, np.diag(np.square(_BROAD_SD)).tolist())),
    log_noise=Normal(mean=math.log(0.01), sd=0.5),
    num_runs=0,
)
# Runs that the broad covariance counts as.
_BROAD_RUNS = 2
_LEAST_LOG_NOISE_SD = 0.3
_ROUNDS = 6


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A training that is over: its whole curve, its teacher's loss known."""

    curve: ValidationCurve
    schedule: RateSchedule

    @property
    def early(self) -> ValidationCurve:
        """Its curve at a quarter."""
        return self.curve.until_quarter(self.schedule)


def learn_priors(runs: Sequence[RecordedRun]) -> Priors:
    """The priors of a next run, from at least two."""
    priors, broad = _BROAD, np.array(_BROAD.covariance)
    for _ in range(_ROUNDS):
        found = [moments(posterior_after(run.curve, run.schedule, priors)) for run in runs]
        means = np.array([mean for mean, _ in found])
        centre = means.mean(0)
        away = means - centre
        scatter = away.T @ away + sum(covariance for _, covariance in found)
        # The noise stands by itself: it is of no influence on where the law leads.
        covariance = (scatter[:4, :4] + _BROAD_RUNS * broad) / (len(runs) - 1 + _BROAD_RUNS)
        log_noise = Normal(mean=float(centre[4]), sd=max(_LEAST_LOG_NOISE_SD, float(means[:, 4].std(ddof=1))))
        priors = _with(priors, centre[:4], covariance, log_noise)
    # The mean itself is known no better than so many runs tell.
    widened = np.array(priors.covariance) * (1 + 1 / len(runs))
    learnt = _with(priors, np.array(priors.mean), widened, priors.log_noise)
    return learnt.model_copy(update={"num_runs": len(runs)})


def moments(posterior: Posterior) -> tuple[Array, Array]:
    """Mean `[5]` and covariance `[5, 5]` of ln alpha, ln tau, a, k and ln noise of one run."""
    weights = np.exp(posterior.log_weights)
    values = np.concatenate([posterior.cells[:, :2], posterior.mean, posterior.cells[:, 2:]], axis=1)
    mean = weights @ values
    away = values - mean
    covariance = (weights[:, None] * away).T @ away
    covariance[2:4, 2:4] += np.einsum("c,cpq->pq", weights, posterior.covariance)
    return mean, covariance


def _with(priors: Priors, mean: Array, covariance: Array, log_noise: Normal) -> Priors:
    update = {
        "mean": tuple(mean.tolist()),
        "covariance": tuple(map(tuple, covariance.tolist())),
        "log_noise": log_noise,
    }
    return priors.model_copy(update=update)
