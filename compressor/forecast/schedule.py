"""The learning rate at any step of a training, and its sum: how far the optimizer was allowed to move.

The schedule is the trainer's: linear warm-up, then half a cosine down to a fraction of the peak.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RateSchedule:
    """Warm-up and cosine, in optimizer steps.

    Attributes:
        max_steps: Of the whole training.
        warmup_steps: Of linear warm-up.
        learning_rate: Peak.
        min_learning_rate_ratio: Floor of the cosine over the peak.
    """

    max_steps: int
    warmup_steps: int
    learning_rate: float
    min_learning_rate_ratio: float

    @property
    def quarter_step(self) -> int:
        """The step at a quarter of the training, after which its end is forecast."""
        return max(1, round(self.max_steps / 4))

    def factors(self) -> Array:
        """The learning rate of every step over the peak, `[max_steps]`; the first step's is the first."""
        steps = np.arange(self.max_steps, dtype=np.float64)
        warm = steps / max(1, self.warmup_steps)
        progress = (steps - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps)
        cosine = 0.5 * (1 + np.cos(math.pi * progress))
        ratio = self.min_learning_rate_ratio
        return np.where(steps < self.warmup_steps, warm, ratio + (1 - ratio) * cosine)

    def travelled(self) -> Array:
        """Sum of the learning rates of the first n steps, `[max_steps + 1]`, from n = 0 on."""
        return self.learning_rate * np.concatenate([[0.0], np.cumsum(self.factors())])

    def current(self) -> Array:
        """The learning rate over the peak that step n was made with, `[max_steps + 1]`; before any, 0."""
        return np.concatenate([[0.0], self.factors()])
