from __future__ import annotations

from bench.runtimes.special_tokens import special_token_ids


def test_ids_may_be_absent_null_one_or_several() -> None:
    config = {"eos_token_id": [7, 9], "pad_token_id": None, "bos_token_id": 1, "vocab_size": 50}
    assert special_token_ids(config) == {1, 7, 9}
    assert special_token_ids({}) == frozenset()
