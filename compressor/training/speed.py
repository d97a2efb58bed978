"""How fast a training is going: tokens per second, seconds per step, share of the GPU's peak rate."""

from __future__ import annotations

import time

from compressor.core.hardware import peak_bf16_flops_per_s
from compressor.core.processes import world_size


class Speed:
    """Counts tokens between two readings."""

    def __init__(self, flops_per_token: float | None) -> None:
        """Start; None for the FLOPs of a training step leaves the utilisation out."""
        self._flops_per_token = flops_per_token
        self._peak = peak_bf16_flops_per_s()
        self._tokens = self._steps = 0
        self._since = time.monotonic()

    def count(self, num_tokens: int) -> None:
        """One more step, of so many tokens over all processes."""
        if self._steps == 0:
            self._since = time.monotonic()
        self._tokens += num_tokens
        self._steps += 1

    def take(self) -> dict[str, float]:
        """Figures since the last reading; the utilisation only on a GPU whose peak is known."""
        seconds = time.monotonic() - self._since
        figures = {"tokens_per_s": self._tokens / seconds, "seconds_per_step": seconds / self._steps}
        if self._peak is not None and self._flops_per_token is not None:
            achieved = figures["tokens_per_s"] * self._flops_per_token
            figures["utilisation"] = achieved / (self._peak * world_size())
        self._tokens = self._steps = 0
        return figures
