"""Perplexity: exp of the mean negative log-likelihood over non-overlapping windows, without BOS.

Every window stands alone: its first token is context only, so a window of W tokens scores W - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from compressor.calibration.likelihood import negative_log_likelihood
from compressor.core.errors import VerificationError
from compressor.data.tokenise import TokenArray
from compressor.evaluation.record import Perplexity
from compressor.models.adapter import ModelAdapter


@torch.no_grad()
def perplexity(
    model: Any, windows: TokenArray, *, on_window: Callable[[], None] = lambda: None
) -> Perplexity:
    """Perplexity of a causal language model over windows of token ids, `[num_windows, window]`.

    Raises:
        VerificationError: when it is not finite.
    """
    adapter = ModelAdapter(model)
    device = adapter.lm_head_weight.device
    total = 0.0
    for window in windows:
        ids = torch.from_numpy(window.astype("int64"))[None].to(device)
        hidden = adapter.body(ids, use_cache=False).last_hidden_state[0, :-1]
        total += negative_log_likelihood(hidden, adapter.lm_head_weight, ids[0, 1:]).item()
        on_window()
    num_windows, size = windows.shape
    num_tokens = num_windows * (size - 1)
    mean_nll = total / num_tokens
    if not math.isfinite(mean_nll):
        raise VerificationError(
            "the perplexity is not finite",
            found=mean_nll,
            hint="find weights that are not finite with `compress-export verify`; else use --dtype float32",
        )
    return Perplexity(
        perplexity=math.exp(mean_nll),
        mean_nll=mean_nll,
        num_tokens=num_tokens,
        window=size,
        num_windows=num_windows,
    )
