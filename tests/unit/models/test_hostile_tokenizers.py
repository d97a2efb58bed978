"""Tokenizers that someone made to do harm; what one makes of a text says the `tokenizers` library itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from compressor.core.errors import VerificationError
from compressor.models.tokenizer import read_backend, require_known_ids
from tests.tiny_models import VOCAB_SIZE, make_tokenizer


def doubled(times: int) -> dict[str, Any]:
    rule = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return {"type": "Sequence", "normalizers": [rule] * times}


def written(directory: Path, **parts: Any) -> Path:
    document = json.loads(make_tokenizer().backend_tokenizer.to_str())
    (directory / "tokenizer.json").write_text(json.dumps({**document, **parts}))
    return directory


def test_rules_that_multiply_are_refused_before_they_run(tmp_path: Path) -> None:
    few = read_backend(written(tmp_path, normalizer=doubled(7)))
    assert few.normalizer.normalize_str("a") == "a" * 2**7
    many = written(tmp_path, normalizer=doubled(9))
    assert Tokenizer.from_file(str(many / "tokenizer.json")).normalizer.normalize_str("a") == "a" * 2**9
    with pytest.raises(VerificationError, match="far longer") as refused:
        read_backend(many)
    assert str(refused.value.where).endswith("tokenizer.json: normalizer")


@pytest.mark.parametrize(
    ("part", "rules"),
    [
        ("normalizer", {"type": "Replace", "pattern": {"Regex": "x*"}, "content": "y" * 300}),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 9}),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "aaaaaaa"}] * 3}),
        ("decoder", {"type": "Sequence", "decoders": [doubled(9)["normalizers"][0]] * 9}),
    ],
)
def test_every_rule_that_writes_more_than_it_reads_counts(
    part: str, rules: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(VerificationError, match="far longer") as refused:
        read_backend(written(tmp_path, **{part: rules}))
    assert str(refused.value.where).endswith(part)


def test_what_models_come_with_is_read(tmp_path: Path) -> None:
    marks = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"},
    ]
    read_backend(written(tmp_path, normalizer={"type": "Sequence", "normalizers": marks}))


@pytest.mark.parametrize("key", ["added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"])
@pytest.mark.parametrize("value", [3, True, 1.5, "abc"])
def test_a_config_that_lists_no_tokens_where_it_should_is_refused(
    key: str, value: object, tmp_path: Path
) -> None:
    (written(tmp_path) / "tokenizer_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(VerificationError, match="does not list tokens") as refused:
        require_known_ids(tmp_path, VOCAB_SIZE)
    assert str(refused.value.where).endswith(f"tokenizer_config.json: {key}")
