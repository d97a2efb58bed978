from __future__ import annotations

from pathlib import Path

import pytest

from bench.runtimes.model_config import section, vocabulary_of
from compressor.core.errors import VerificationError


def test_ids_may_be_absent_null_one_or_several() -> None:
    config = {"eos_token_id": [7, 9], "pad_token_id": None, "bos_token_id": 1, "vocab_size": 50}
    vocabulary = vocabulary_of(config, where=Path())
    assert (vocabulary.size, vocabulary.special_token_ids) == (50, (1, 7, 9))
    assert vocabulary_of({"vocab_size": 3}, where=Path()).special_token_ids == ()


@pytest.mark.parametrize("config", [{}, {"vocab_size": None}, {"vocab_size": "50"}])
def test_a_config_without_a_vocabulary_size_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(VerificationError, match="vocabulary size"):
        vocabulary_of(config, where=Path())


def test_a_section_may_be_absent_but_not_of_another_type() -> None:
    assert section({}, "decoder", what="the config") == {}
    with pytest.raises(VerificationError, match="'decoder' of the config"):
        section({"decoder": None}, "decoder", what="the config")
