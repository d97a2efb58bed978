"""What a model replies to a conversation, greedily, and what can be said of a reply without a judge.

A reply repeats itself where a phrase of at least two tokens stands at least three times in a row at its end
(Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020, figure 9). Likelihoods under
another model leave out every token that completes four tokens which stood in the reply before: any model
copies those with near certainty, so that a loop would look like the best of texts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from compressor.data.tokenise import TokenArray
from compressor.evaluation.predictions import CHUNK_POSITIONS
from compressor.models.adapter import ModelAdapter

FEWEST_PHRASE_TOKENS, FEWEST_TIMES = 2, 3
NGRAM = 4


@torch.no_grad()
def greedy_reply(
    model: Any, prompt: TokenArray, *, max_new_tokens: int, ends: Sequence[int]
) -> tuple[int, ...]:
    """The tokens with which a model answers a prompt, the one that ends its reply included.

    The model's own generation settings, such as a repetition penalty, are replaced.
    """
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,
    )
    ids = torch.from_numpy(prompt.astype("int64"))[None].to(model.device)
    output = model.generate(ids, attention_mask=torch.ones_like(ids))
    return tuple(output[0, len(prompt) :].tolist())


@torch.no_grad()
def log_likelihoods(model: Any, prompt: TokenArray, reply: Sequence[int]) -> torch.Tensor:
    """The log-probability of every token of a reply to a prompt, `[num_reply_tokens]`, float64 nats."""
    adapter = ModelAdapter(model)
    head = adapter.lm_head_weight
    ids = torch.tensor([[*prompt.tolist(), *reply]], device=head.device)
    hidden = adapter.body(ids, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1]
    targets = ids[0, len(prompt) :, None]
    found = [
        (hidden[chunk] @ head.T).float().log_softmax(-1).gather(-1, targets[chunk])[:, 0]
        for start in range(0, len(hidden), CHUNK_POSITIONS)
        for chunk in (slice(start, start + CHUNK_POSITIONS),)
    ]
    return torch.cat(found).double().cpu()


def said(reply: Sequence[int], ends: Collection[int]) -> tuple[int, ...]:
    """A reply without the token that ends it."""
    return tuple(reply[:-1] if has_ended(reply, ends) else reply)


def has_ended(reply: Sequence[int], ends: Collection[int]) -> bool:
    """Whether the model ended its reply itself."""
    return bool(reply) and reply[-1] in ends


def is_degenerate(reply: Sequence[int], ends: Collection[int]) -> bool:
    """Whether a reply says nothing, or repeats itself at its end."""
    tokens = said(reply, ends)
    return not tokens or repeats_itself(tokens)


def is_finished(reply: Sequence[int], ends: Collection[int]) -> bool:
    """Whether a reply says something, does not repeat itself at its end, and was ended by the model."""
    return has_ended(reply, ends) and not is_degenerate(reply, ends)


def repeats_itself(tokens: Sequence[int]) -> bool:
    """Whether the same phrase stands at the end, several times in a row."""
    tokens = tuple(tokens)
    return any(
        tokens[-FEWEST_TIMES * length :] == FEWEST_TIMES * tokens[-length:]
        for length in range(FEWEST_PHRASE_TOKENS, len(tokens) // FEWEST_TIMES + 1)
    )


def new_tokens(reply: Sequence[int]) -> list[int]:
    """The positions of a reply whose token does not complete four tokens that it held before."""
    seen: set[tuple[int, ...]] = set()
    found = []
    for position in range(len(reply)):
        gram = tuple(reply[max(0, position + 1 - NGRAM) : position + 1])
        if len(gram) < NGRAM or gram not in seen:
            found.append(position)
        seen.add(gram)
    return found
