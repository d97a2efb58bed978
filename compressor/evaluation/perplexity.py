"""Perplexity: exp of the mean negative log-likelihood over non-overlapping windows, without BOS.

Every window stands alone: its first token is context only, so a window of W tokens scores W - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from compressor.core.errors import VerificationError
from compressor.data.tokenise import TokenArray
from compressor.evaluation.executed import Logits
from compressor.evaluation.predictions import Baseline, Predictions, predict, predict_by_logits
from compressor.evaluation.record import Agreement, Perplexity

_DIGITS = 8  # of what is recorded per window
_OF_MODEL = "find weights that are not finite with `compress-export verify`; else use --dtype float32"
_OF_GRAPH = "float16 may be too narrow for this model: export it in another precision"


def perplexity(
    model: Any,
    windows: TokenArray,
    *,
    baseline: Baseline | None = None,
    on_window: Callable[[], None] = lambda: None,
    where: str | None = None,
) -> tuple[Perplexity, Baseline]:
    """Perplexity of a causal language model over windows of token ids, `[num_windows, window]`.

    With a `baseline`, its agreement with that as well; without one, what later models are compared with.

    Raises:
        VerificationError: when it is not finite, naming `where`.
    """
    found, own = predict(model, windows, baseline=baseline, on_window=on_window)
    return _measured(found, windows, where=where, hint=_OF_MODEL), own


def perplexity_by_logits(
    logits: Logits,
    windows: TokenArray,
    *,
    baseline: Baseline | None = None,
    on_window: Callable[[], None] = lambda: None,
    where: str | None = None,
) -> Perplexity:
    """The same of a function from token ids to logits, such as a graph that a runtime executes.

    Raises:
        VerificationError: when it is not finite, naming `where`.
    """
    found = predict_by_logits(logits, windows, baseline=baseline, on_window=on_window)
    return _measured(found, windows, where=where, hint=_OF_GRAPH)


def _measured(found: Predictions, windows: TokenArray, *, where: str | None, hint: str) -> Perplexity:
    num_windows, size = windows.shape
    num_tokens = num_windows * (size - 1)
    mean_nll = sum(found.sums) / num_tokens
    if not math.isfinite(mean_nll):
        raise VerificationError(
            "the perplexity is not finite",
            where=where,
            found=mean_nll,
            hint=hint,
        )
    return Perplexity(
        perplexity=math.exp(mean_nll),
        mean_nll=mean_nll,
        num_tokens=num_tokens,
        window=size,
        num_windows=num_windows,
        window_nll=_kept(found.nll),
        information=found.information,
        agreement=_agreement(found) if found.kl else None,
    )


def _agreement(found: Predictions) -> Agreement:
    return Agreement(
        kl=_mean(found.kl),
        top1=_mean(found.top1),
        margin=_mean(found.margin),
        window_kl=_kept(found.kl),
        window_top1=_kept(found.top1),
    )


def _mean(values: Sequence[float]) -> float:
    """Windows are of equal length, so this is the mean over all positions."""
    return sum(values) / len(values)


def _kept(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values)
