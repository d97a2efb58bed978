"""Dynamic batch loading's update of the domains' weights (Sheared LLaMA, arXiv 2310.06694).

A domain whose loss is further above its reference than the others' gets a larger share. Two variants
are published. The paper's (algorithm 1), with l the losses and r the references:

    delta_i = max(l_i - r_i, 0),  w_i <- w_i e^delta_i / sum_j w_j e^delta_j

The released code's keeps shortfalls (no max) and mixes in a uniform share, c = 1e-4 and k domains:

    w <- (1 - c) softmax(ln w + delta) + c / k
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

SMOOTHING = 1e-4

Variant = Literal["clipped", "unclipped"]


def updated_weights(
    weights: npt.NDArray[np.float64],
    losses: Sequence[float],
    references: Sequence[float],
    *,
    variant: Variant,
) -> npt.NDArray[np.float64]:
    """The weights of the next interval.

    Args:
        weights: Positive shares summing to 1, `[num_domains]`.
        losses: The student's mean cross-entropy per domain, in nats.
        references: What it is compared with, in nats.
        variant: `clipped` or `unclipped`.

    Returns:
        Shares summing to 1, `[num_domains]`.
    """
    excess = np.asarray(losses, dtype=np.float64) - np.asarray(references, dtype=np.float64)
    if variant == "clipped":
        return _softmax(np.log(weights) + np.maximum(excess, 0.0))
    return (1 - SMOOTHING) * _softmax(np.log(weights) + excess) + SMOOTHING / len(weights)


def _softmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers = np.exp(values - values.max())
    shares: npt.NDArray[np.float64] = powers / powers.sum()
    return shares
