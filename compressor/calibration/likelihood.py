"""How likely a model finds the tokens of a text, from its last hidden states."""

from __future__ import annotations

import torch
from torch.nn import functional

_CHUNK_TOKENS = 256


def negative_log_likelihood(
    hidden_TH: torch.Tensor, head_VH: torch.Tensor, targets_T: torch.Tensor
) -> torch.Tensor:
    """Sum over tokens T of -log softmax(hidden head^T)[target], logits in float32, a chunk at a time.

    Hidden states are `[T, hidden_size]`, the LM head is `[vocab_size, hidden_size]`, the sum float64.
    """
    total = torch.zeros((), dtype=torch.float64)
    for hidden, targets in zip(hidden_TH.split(_CHUNK_TOKENS), targets_T.split(_CHUNK_TOKENS), strict=True):
        logits = (hidden @ head_VH.T).float()
        total += functional.cross_entropy(logits, targets, reduction="sum").double().cpu()
    return total
