"""Figures of chat quality, from what was measured conversation by conversation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from compressor.core.errors import VerificationError
from compressor.evaluation.chat_record import ChatItems, ChatModel, Replies, Turns
from compressor.evaluation.paired import paired
from compressor.evaluation.replies import is_degenerate, is_finished, said
from compressor.evaluation.task_record import Paired

TURNS, REPLIES = "turns", "replies"


def turns_of(
    nll: Sequence[float], counts: Sequence[int], items: ChatItems, *, information: float, model: str
) -> Turns:
    """Means over all tokens, from means over the `counts` tokens of each conversation.

    Raises:
        VerificationError: when the perplexity is not finite.
    """
    mean = _over_tokens(nll, counts)
    if not math.isfinite(mean):
        raise VerificationError(
            "the perplexity of the assistant's turns is not finite",
            where=model,
            found=mean,
            hint="find weights that are not finite with `compress-export verify`; else use --dtype float32",
        )
    return Turns(
        perplexity=math.exp(mean),
        mean_nll=mean,
        information=information,
        kl=_over_tokens(items.kl, counts) if items.kl else None,
        top1=_over_tokens(items.top1, counts) if items.top1 else None,
        conversation_nll=tuple(nll),
    )


def replies_of(items: ChatItems, ends: Sequence[int]) -> Replies:
    """Means over the replies."""
    return Replies(**{name: sum(values) / len(values) for name, values in _scores(items, ends).items()})


def pairs_of(
    models: Mapping[str, ChatModel],
    items: Mapping[str, ChatItems],
    counts: Sequence[int],
    ends: Sequence[int],
) -> tuple[Paired, ...]:
    """Every further model against the first, conversation by conversation."""
    first, *others = models
    scores = {name: _scores(items[name], ends) for name in models}
    found = []
    for name in others:
        losses = [nll_samples(models[one].turns, counts) for one in (first, name)]
        found.append(paired(TURNS, name, "mean_nll", *losses))
        found += [
            paired(REPLIES, name, metric, scores[first][metric], own) for metric, own in scores[name].items()
        ]
    return tuple(found)


def nll_samples(turns: Turns, counts: Sequence[int]) -> list[float]:
    """One number for each conversation, whose mean is the mean over all tokens.

    Conversations differ in length, so that this mean is a ratio of sums; the spread of these numbers is that
    of the ratio (linearised, Cochran, "Sampling Techniques", chapter 6). Two models' numbers, paired, give
    the spread of the difference likewise.
    """
    usual = sum(counts) / len(counts)
    return [
        turns.mean_nll + (nll - turns.mean_nll) * count / usual
        for nll, count in zip(turns.conversation_nll, counts, strict=True)
    ]


def _scores(items: ChatItems, ends: Sequence[int]) -> dict[str, list[float]]:
    """By the fields of `Replies`, one number for each reply."""
    return {
        "finished": [float(is_finished(reply, ends)) for reply in items.replies],
        "degenerate": [float(is_degenerate(reply, ends)) for reply in items.replies],
        "tokens": [float(len(said(reply, ends))) for reply in items.replies],
        "log_likelihood": list(items.log_likelihood),
        "relevance": list(items.relevance),
    }


def _over_tokens(means: Sequence[float], counts: Sequence[int]) -> float:
    return sum(mean * count for mean, count in zip(means, counts, strict=True)) / sum(counts)
