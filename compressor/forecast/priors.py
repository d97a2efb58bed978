"""What recorded runs say of a new one before it begins, as numbers in a packaged file.

`python -m tests.performance.results forecast` makes the file, from the runs in `docs/results/forecast.json`.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from compressor.core.records import Record

PRIORS_FILE = "priors.json"


class Normal(Record):
    """Mean and standard deviation over runs of a parameter, or of its logarithm."""

    mean: float
    sd: float


class Priors(Record):
    """Parameters over runs; see the formula in `compressor.forecast.model`.

    Attributes:
        mean: Of ln alpha, ln tau, a and k, in this order.
        covariance: Of the same, row by row.
        log_noise: Of ln of the noise at the peak rate, as a share of G.
        num_runs: That they come from.
    """

    mean: tuple[float, float, float, float]
    covariance: tuple[tuple[float, float, float, float], ...]
    log_noise: Normal
    num_runs: int


@cache
def packaged_priors() -> Priors:
    """The priors that come with this package."""
    text = files(__package__).joinpath(PRIORS_FILE).read_text(encoding="utf-8")
    return Priors.model_validate(json.loads(text))
