from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.data.packing import PackedWindows, read_windows, write_tokens
from compressor.errors import UsageError

SEQ_LEN = 32


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def test_windows_are_the_text_cut(tiny_text: Path, tiny_tokenizer: Any) -> None:
    windows = read_windows(str(tiny_text), "all", tiny_tokenizer, size=5, seq_len=SEQ_LEN)

    assert windows.shape == (5, SEQ_LEN)
    assert windows.ravel().tolist() == ids_of(tiny_tokenizer, tiny_text.read_text())[: 5 * SEQ_LEN]


def test_documents_are_joined_by_the_end_token(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("river", "stone")))
    river, stone = ids_of(tiny_tokenizer, "river"), ids_of(tiny_tokenizer, "stone")
    end = tiny_tokenizer.eos_token_id

    windows = read_windows(str(path), "all", tiny_tokenizer, size=1, seq_len=len(river) + len(stone) + 2)

    assert windows[0].tolist() == [*river, end, *stone, end]


def test_fewer_windows_when_the_text_is_short(make_text: Any, tiny_tokenizer: Any) -> None:
    text = make_text(num_words=60)
    num_tokens = len(ids_of(tiny_tokenizer, text.read_text()))

    windows = read_windows(str(text), "all", tiny_tokenizer, size=1000, seq_len=SEQ_LEN)

    assert len(windows) == num_tokens // SEQ_LEN


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_text_shorter_than_one_window(make_text: Any, tiny_tokenizer: Any, split: Any) -> None:
    with pytest.raises(UsageError, match="shorter than one window") as caught:
        read_windows(str(make_text(num_words=24)), split, tiny_tokenizer, size=1, seq_len=4096)
    assert "4096 tokens" in str(caught.value.expected)


def packed(path: Path, num_tokens: int, num_windows: int, seed: int = 0) -> PackedWindows:
    np.arange(num_tokens, dtype="<u4").tofile(path)
    return PackedWindows(path, seq_len=SEQ_LEN, num_windows=num_windows, seed=seed)


def starts(windows: PackedWindows) -> list[int]:
    return [int(windows[index]["input_ids"][0]) for index in range(len(windows))]


def test_every_epoch_visits_every_window_once(tmp_path: Path) -> None:
    windows = packed(tmp_path / "tokens", 10 * SEQ_LEN + 7, 30)
    order = starts(windows)

    epochs = [order[first : first + 10] for first in (0, 10, 20)]
    assert [sorted(epoch) for epoch in epochs] == [[SEQ_LEN * number for number in range(10)]] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    assert windows.num_epochs == 3


def test_the_index_is_the_whole_position(tmp_path: Path) -> None:
    windows = packed(tmp_path / "tokens", 10 * SEQ_LEN, 25)
    forwards = starts(windows)

    assert [int(windows[index]["input_ids"][0]) for index in reversed(range(25))] == forwards[::-1]
    assert starts(packed(tmp_path / "tokens", 10 * SEQ_LEN, 25, seed=1)) != forwards


def test_windows_are_whole_and_of_the_right_type(tmp_path: Path) -> None:
    ids = packed(tmp_path / "tokens", 3 * SEQ_LEN, 1)[0]["input_ids"]

    assert ids.dtype == np.int64
    assert ids.tolist() == list(range(ids[0], ids[0] + SEQ_LEN))


@pytest.mark.parametrize("num_tokens", [0, SEQ_LEN - 1])
def test_token_file_shorter_than_one_window(tmp_path: Path, num_tokens: int) -> None:
    with pytest.raises(UsageError, match="training text is shorter"):
        packed(tmp_path / "tokens", num_tokens, 1)


def test_token_file_stops_at_its_budget(tiny_text: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    budget = 5 * SEQ_LEN + 3

    assert write_tokens(str(tiny_text), "all", tiny_tokenizer, path, max_tokens=budget) == budget
    assert np.fromfile(path, "<u4").tolist() == ids_of(tiny_tokenizer, tiny_text.read_text())[:budget]


def test_token_file_of_a_short_text_holds_all_of_it(
    make_text: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    text = make_text(num_words=50)
    written = write_tokens(str(text), "all", tiny_tokenizer, tmp_path / "tokens", max_tokens=10**6)

    assert written == len(ids_of(tiny_tokenizer, text.read_text()))
