"""An export that a runtime on this machine executes, seen from what measures it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

# From token ids to float32 logits of every position, `[num_positions, vocab_size]`, on the CPU.
Logits = Callable[[Sequence[int]], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class ExecutedGraph:
    """A graph that is open.

    Attributes:
        logits: What it computes of tokens behind an empty cache.
        max_positions: The longest sequence that it computes; None without a limit.
        notes: Where its numbers or operators are computed otherwise than by default.
    """

    logits: Logits
    max_positions: int | None = None
    notes: tuple[str, ...] = ()
