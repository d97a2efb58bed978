"""Next-token distributions cut down to some tokens and one bucket for all others.

Probabilities of K tokens alone do not sum to one. Renormalised, they say nothing of what a model gives to the
other tokens, and a student may give these anything. With the others as one more bucket, the divergence is one
of whole distributions again: at most that over the vocabulary, and equal to it when K is V.

Legend: T tokens, V vocabulary, K the teacher's top-k tokens, B = K + 1 buckets; B = K when K is V.
"""

from __future__ import annotations

import torch

from compressor.distillation.losses import wide

# Of the bucket that nothing is left for: its logarithm must be finite, and its probability next to nothing.
_LEAST = -80.0


def buckets(logits_TV: torch.Tensor, ids_TK: torch.Tensor, *, temperature: float = 1.0) -> torch.Tensor:
    """Logits whose softmax at `temperature` is the distribution over K tokens and the others, `[T, B]`.

    Args:
        logits_TV: Of a model.
        ids_TK: Token ids, distinct in every row.
        temperature: Of the distribution that is cut down.
    """
    cooled, ids = wide(logits_TV) / temperature, ids_TK.long()
    chosen = cooled.gather(-1, ids)
    if ids.shape[-1] < cooled.shape[-1]:
        others = cooled.scatter(-1, ids, float("-inf")).logsumexp(-1, keepdim=True)
        chosen = torch.cat([chosen, others], dim=-1)
    return chosen * temperature


def stored_buckets(
    logprobs_TK: torch.Tensor, tail_logprobs_T: torch.Tensor | None, *, top_k: int | None = None
) -> torch.Tensor:
    """Logits of a teacher's distribution over its first `top_k` stored tokens and the others, `[T, B]`.

    Args:
        logprobs_TK: Stored log-probabilities at temperature 1, most likely token first.
        tail_logprobs_T: Of all tokens that are not stored; None when all are.
        top_k: Tokens that keep a bucket of their own; by default all that are stored.
    """
    logprobs = wide(logprobs_TK)
    rest = [logprobs[:, top_k:]] if top_k is not None and top_k < logprobs.shape[1] else []
    if tail_logprobs_T is not None:
        rest.append(wide(tail_logprobs_T)[:, None])
    chosen = logprobs[:, :top_k]
    if not rest:
        return chosen
    return torch.cat([chosen, torch.cat(rest, dim=-1).logsumexp(-1, keepdim=True)], dim=-1)


def remainder(logprobs_TK: torch.Tensor) -> torch.Tensor:
    """The log-probability `[T]` that rounded ones leave to all other tokens, which may be nothing."""
    left = 1 - logprobs_TK.double().exp().sum(-1)
    return left.log().clamp_min(_LEAST).nan_to_num(nan=_LEAST)
