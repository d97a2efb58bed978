"""Properties of replies by brute force, and their likelihood under a plain transformers model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from compressor.evaluation.replies import (
    has_ended,
    is_degenerate,
    is_finished,
    log_likelihoods,
    new_tokens,
    repeats_itself,
    said,
)
from tests.tiny_models import make_model

END = 9


def loops(tokens: tuple[int, ...]) -> bool:
    """Every phrase that could stand three times at the end, compared token by token."""
    for length in range(2, len(tokens) + 1):
        if 3 * length > len(tokens):
            return False
        last = len(tokens) - length
        if all(
            tokens[last + i] == tokens[last - length + i] == tokens[last - 2 * length + i]
            for i in range(length)
        ):
            return True
    return False


def test_a_loop_is_a_phrase_of_two_or_more_tokens_three_times_at_the_end() -> None:
    every = [tokens for size in range(12) for tokens in itertools.product((1, 2), repeat=size)]
    every += list(itertools.product((1, 2, 3), repeat=8))
    found = [repeats_itself(tokens) for tokens in every]
    assert found == [loops(tokens) for tokens in every]
    assert 0 < sum(found) < len(found)
    assert not repeats_itself((5, 5, 5, 5, 5))
    assert repeats_itself((1, 2, 3, *(4, 5, 6, 7) * 3))
    assert not repeats_itself((*(4, 5, 6, 7) * 3, 1))


def test_a_token_is_new_unless_it_completes_four_tokens_that_stood_before() -> None:
    for size in range(1, 11):
        for reply in itertools.product((1, 2), repeat=size):
            grams = [reply[i : i + 4] for i in range(size - 3)]
            repeated = {i + 3 for i, gram in enumerate(grams) if gram in grams[:i]}
            assert new_tokens(reply) == [i for i in range(size) if i not in repeated]
    assert new_tokens((7,) * 50) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("reply", "ended", "degenerate", "finished"),
    [
        ((1, 2, 3, END), True, False, True),
        ((1, 2, 3), False, False, False),
        ((END,), True, True, False),
        ((1, *(2, 3) * 3, END), True, True, False),
        ((4,) * 8, False, True, False),
    ],
)
def test_what_is_said_of_a_reply(
    reply: tuple[int, ...], ended: bool, degenerate: bool, finished: bool
) -> None:
    assert has_ended(reply, (END,)) == ended
    assert is_degenerate(reply, (END,)) == degenerate
    assert is_finished(reply, (END,)) == finished
    assert said(reply, (END,)) == tuple(token for token in reply if token != END)


def test_likelihood_of_a_reply_longer_than_a_chunk() -> None:
    model = make_model()
    rng = np.random.default_rng(0)
    prompt, reply = rng.integers(0, 320, 40).astype(np.uint32), rng.integers(0, 320, 300).tolist()
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt.tolist(), *reply]])).logits[0].double()
    expected = [logits[len(prompt) + i - 1].log_softmax(-1)[token].item() for i, token in enumerate(reply)]
    assert log_likelihoods(model, prompt, reply).tolist() == pytest.approx(expected, rel=1e-5)
