"""Statistics of activations, as pure functions and small accumulators.

Minitron (arXiv 2407.14679, section 2.2) scores a unit by aggregating its activation over the
sequence, then over the batch: mean = (1/n) sum |s|, l2 = sqrt(sum s^2), var = (1/n) sum (s - mean s)^2.

Legend: B samples, T tokens, C units, L layers, H hidden_size, N query heads, D head_dim. Everything
is accumulated in float32 at least, whatever autocast is around.
"""

from __future__ import annotations

import torch

from compressor.core.processes import sum_over_processes
from compressor.recipe.compression import Aggregation


def over_sequence(x_BTC: torch.Tensor, aggregation: Aggregation) -> torch.Tensor:
    """Aggregate activations `[B, T, C]` over tokens; returns float32 `[B, C]`."""
    num_tokens = x_BTC.shape[1]
    if aggregation == "var":
        return x_BTC.float().var(dim=1, correction=0)
    order = 1 if aggregation == "mean" else 2
    norms: torch.Tensor = torch.linalg.vector_norm(x_BTC, ord=order, dim=1, dtype=torch.float32)
    return norms / num_tokens if aggregation == "mean" else norms


def head_norms(x_BTC: torch.Tensor, num_heads: int) -> torch.Tensor:
    """L2 norm of every head's output, from `[B, T, N * D]` to float32 `[B, T, N]`."""
    heads = x_BTC.unflatten(-1, (num_heads, -1))
    norms: torch.Tensor = torch.linalg.vector_norm(heads, dim=-1, dtype=torch.float32)
    return norms


class BatchAggregate:
    """Aggregates per-sample scores over all samples of a calibration set, in float64."""

    def __init__(self, aggregation: Aggregation) -> None:
        self._aggregation = aggregation
        self._count = 0
        self._sum = torch.zeros(())
        self._sum_of_squares = torch.zeros(())

    def add(self, scores_BC: torch.Tensor) -> None:
        """Add the scores of some samples, `[B, C]`."""
        scores = scores_BC.to(dtype=torch.float64)
        self._count += scores.shape[0]
        self._sum = self._sum.to(scores.device) + scores.sum(0)
        self._sum_of_squares = self._sum_of_squares.to(scores.device) + scores.square().sum(0)

    def sum_over_processes_(self, num_units: int) -> None:
        """Make it the aggregate of the samples of all processes of the run, each of which has its own."""
        own = torch.zeros(2, num_units, dtype=torch.float64)
        if self._count:
            own = torch.stack([self._sum, self._sum_of_squares]).cpu()
        self._count = int(sum_over_processes(torch.tensor(self._count)))
        self._sum, self._sum_of_squares = sum_over_processes(own)

    def result(self) -> torch.Tensor:
        """The aggregate, float64 `[C]` on the CPU."""
        mean = self._sum / self._count
        values = {
            "mean": mean,
            "l2": self._sum_of_squares.sqrt(),
            "var": (self._sum_of_squares / self._count - mean.square()).clamp_min(0),
        }
        return values[self._aggregation].cpu()


def cosine_sums(states_LTH: list[torch.Tensor], *, chunk_tokens: int = 128) -> torch.Tensor:
    """Cosine of every two hidden states `[T, H]`, summed over tokens: float64 `[L, L]` on the CPU."""
    num_states, num_tokens = len(states_LTH), states_LTH[0].shape[0]
    total = torch.zeros(num_states, num_states, dtype=torch.float64)
    for start in range(0, num_tokens, chunk_tokens):
        x_TLH = torch.stack([state[start : start + chunk_tokens] for state in states_LTH], dim=1).float()
        x_TLH /= torch.linalg.vector_norm(x_TLH, dim=-1, keepdim=True).clamp_min(1e-30)
        total += torch.bmm(x_TLH, x_TLH.transpose(1, 2)).sum(0).double().cpu()
    return total
