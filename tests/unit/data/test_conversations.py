from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compressor.data.conversations import render
from compressor.data.packing import read_windows, starts_path, write_tokens
from compressor.data.sources import documents
from compressor.errors import UsageError
from tests.tiny_models import make_tokenizer

CHATS = [
    [{"role": "user", "content": "one river"}, {"role": "assistant", "content": "stone"}],
    [{"role": "user", "content": "winter"}],
]


def write_chats(path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"messages": CHATS, "source": ["a", "b"]}), path)
    else:
        path.write_text("".join(json.dumps({"messages": chat, "n": 1}) + "\n" for chat in CHATS))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_conversations_are_rendered_by_the_chat_template(
    tmp_path: Path, tiny_tokenizer: Any, suffix: str
) -> None:
    chats = write_chats(tmp_path / f"chats{suffix}")
    path = tmp_path / "tokens"
    write_tokens(str(chats), "all", tiny_tokenizer, path, max_tokens=10**6)
    tokens = np.fromfile(path, "<u4").tolist()
    end = tiny_tokenizer.eos_token
    rendered = f"user: one river\nassistant: stone\n{end}user: winter\n{end}"

    assert tiny_tokenizer.decode(tokens) == rendered
    assert len(np.fromfile(starts_path(path), "<u8")) == 2


def test_special_tokens_of_the_template_are_tokens_and_the_end_comes_once(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<|begin|>{{ m['content'] }}<|end|>{% endfor %}"
    chats = write_chats(tmp_path / "chats.jsonl")
    ids = read_windows(str(chats), "train", tokenizer, size=1, seq_len=8)[0].tolist()
    path = tmp_path / "tokens"
    write_tokens(str(chats), "train", tokenizer, path, max_tokens=10**6)
    tokens = np.fromfile(path, "<u4").tolist()

    assert ids[0] == tokenizer.bos_token_id
    assert tokens.count(tokenizer.eos_token_id) == 2  # one per message, none added
    assert tokens[-1] == tokenizer.eos_token_id


def test_a_text_is_taken_before_a_conversation(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"text": "plain", "messages": CHATS[0]}) + "\n")

    assert list(documents(str(path), "all")) == ["plain"]


def test_a_tokenizer_without_a_chat_template(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None

    with pytest.raises(UsageError, match="no chat template"):
        read_windows(str(write_chats(tmp_path / "x.jsonl")), "all", tokenizer, size=1, seq_len=8)


def test_a_conversation_the_template_refuses() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"

    with pytest.raises(UsageError, match="roles must alternate") as caught:
        render(CHATS[0], tokenizer)
    assert "user, assistant" in str(caught.value)


@pytest.mark.parametrize(
    "messages",
    [[], "hello", [{"role": "user"}], [{"role": "user", "content": 3}], ["hello"], [{"content": "a"}]],
)
def test_messages_that_are_no_conversation(tmp_path: Path, messages: Any) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n")

    with pytest.raises(UsageError, match="no conversation") as caught:
        list(documents(str(path), "all"))
    assert str(caught.value.where).endswith("x.jsonl:1")
