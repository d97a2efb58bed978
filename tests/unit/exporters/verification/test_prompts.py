from __future__ import annotations

from typing import Any

import pytest

from compressor.core.errors import VerificationError
from exporters.verification.prompts import MIN_POSITIONS, describe_prompts, verification_prompts
from tests.tiny_models import VOCAB_SIZE


@pytest.mark.parametrize("max_length", [16, 64, 2048])
@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_prompts_fill_the_positions_and_fit_the_context(
    tiny_tokenizer: Any, with_tokenizer: bool, max_length: int
) -> None:
    prompts = verification_prompts(
        tiny_tokenizer if with_tokenizer else None, vocab_size=VOCAB_SIZE, max_length=max_length
    )
    assert sum(len(prompt.token_ids) for prompt in prompts) >= MIN_POSITIONS
    assert all(len(prompt.token_ids) <= max_length for prompt in prompts)
    assert all(0 <= token < VOCAB_SIZE for prompt in prompts for token in prompt.token_ids)
    assert ("text" in {prompt.kind for prompt in prompts}) == with_tokenizer


def test_prompts_are_the_same_every_time(tiny_tokenizer: Any) -> None:
    first, second = (
        verification_prompts(tiny_tokenizer, vocab_size=VOCAB_SIZE, max_length=128) for _ in range(2)
    )
    assert first == second
    assert describe_prompts(first) == describe_prompts(second)
    assert describe_prompts(first).sha256 != describe_prompts(first[1:]).sha256


def test_a_tokenizer_beyond_the_vocabulary_is_refused(tiny_tokenizer: Any) -> None:
    with pytest.raises(VerificationError, match="beyond the vocabulary"):
        verification_prompts(tiny_tokenizer, vocab_size=40, max_length=128)
