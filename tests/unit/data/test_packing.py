from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.core.errors import UsageError, VerificationError
from compressor.data import packing, tokenise
from compressor.data.packing import (
    IGNORED,
    TokenWindows,
    progress_path,
    read_windows,
    starts_path,
    text_record,
    write_tokens,
)
from tests.unit.data.texts import write_rows

SEQ_LEN = 32


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def tokens_of(path: Path) -> list[int]:
    return np.fromfile(path, "<u4").tolist()


def starts_of(path: Path) -> list[int]:
    return np.fromfile(starts_path(path), "<u8").tolist()


def write(source: Path, tokenizer: Any, path: Path, *, max_tokens: int = 10**6) -> int:
    return write_tokens(str(source), "all", tokenizer, path, max_tokens=max_tokens)


def test_windows_are_the_text_cut(tiny_text: Path, tiny_tokenizer: Any) -> None:
    windows = read_windows(str(tiny_text), "all", tiny_tokenizer, size=5, seq_len=SEQ_LEN)

    assert windows.shape == (5, SEQ_LEN)
    assert windows.ravel().tolist() == ids_of(tiny_tokenizer, tiny_text.read_text())[: 5 * SEQ_LEN]


def test_documents_are_joined_by_the_end_token(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = write_rows(tmp_path / "x.jsonl", {"text": "river"}, {"text": "stone"})
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
    with pytest.raises(UsageError, match="shorter than one sequence") as caught:
        read_windows(str(make_text(num_words=24)), split, tiny_tokenizer, size=1, seq_len=4096)
    assert "4096 tokens" in str(caught.value.expected)


@pytest.mark.parametrize("num_tokens", [0, SEQ_LEN - 1])
def test_token_file_shorter_than_one_window(tmp_path: Path, num_tokens: int) -> None:
    np.arange(num_tokens, dtype="<u4").tofile(tmp_path / "tokens")
    with pytest.raises(UsageError, match="training text is shorter"):
        TokenWindows(tmp_path / "tokens", seq_len=SEQ_LEN)


def test_token_file_stops_at_its_budget(tiny_text: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    budget = 5 * SEQ_LEN + 3

    assert write(tiny_text, tiny_tokenizer, path, max_tokens=budget) == budget
    assert tokens_of(path) == ids_of(tiny_tokenizer, tiny_text.read_text())[:budget]


@pytest.mark.parametrize("more", [0, 1])
def test_labels_are_the_next_tokens_over_the_edges_of_windows(tmp_path: Path, more: int) -> None:
    """The last token of a text has none."""
    path = tmp_path / "tokens"
    np.arange(2 * SEQ_LEN + more, dtype="<u4").tofile(path)
    windows = TokenWindows(path, seq_len=SEQ_LEN)
    labels = np.concatenate([windows[index]["labels"] for index in range(2)])

    assert [len(windows), sorted(windows[0]), labels.dtype] == [2, ["input_ids", "labels"], np.int64]
    assert [token for index in range(2) for token in windows[index]["input_ids"]] == list(range(2 * SEQ_LEN))
    assert labels.tolist() == [*range(1, 2 * SEQ_LEN), 2 * SEQ_LEN if more else IGNORED]


def test_document_starts_are_kept_beside_the_tokens(tmp_path: Path, tiny_tokenizer: Any) -> None:
    texts, path = ["river", "winter", "stone wall"], tmp_path / "tokens"
    rows = write_rows(tmp_path / "x.jsonl", *({"text": text} for text in ["", *texts, ""]))
    write(rows, tiny_tokenizer, path)
    ends = np.cumsum([len(ids_of(tiny_tokenizer, text)) + 1 for text in texts])

    assert starts_of(path) == [0, *ends[:-1].tolist()]
    assert (np.fromfile(path, "<u4")[ends - 1] == tiny_tokenizer.eos_token_id).all()


def test_a_text_file_is_one_document(make_text: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    text = make_text(num_words=9000)  # several blocks
    path = tmp_path / "tokens"
    write(text, tiny_tokenizer, path)

    assert starts_of(path) == [0]
    assert tiny_tokenizer.eos_token_id not in tokens_of(path)


def test_documents_cut_off_by_the_budget_leave_no_start_behind_it(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    rows, path = write_rows(tmp_path / "x.jsonl", *[{"text": "stone"}] * 9), tmp_path / "tokens"
    length = len(ids_of(tiny_tokenizer, "stone")) + 1
    write(rows, tiny_tokenizer, path, max_tokens=2 * length)

    assert starts_of(path) == [0, length]


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), seq_len=st.integers(1, 12))
def test_isolated_documents_by_brute_force(
    lengths: list[int], seq_len: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Token by token: the document it is in, and where that began, or the window did."""
    num_tokens = max(sum(lengths), seq_len)
    ends = [*np.cumsum(lengths)[:-1].tolist(), num_tokens]
    starts = [0, *ends[:-1]]
    path = tmp_path_factory.mktemp("tokens") / "x"
    np.arange(num_tokens, dtype="<u4").tofile(path)
    np.asarray(starts, dtype="<u8").tofile(starts_path(path))
    windows = TokenWindows(path, seq_len=seq_len, isolate_documents=True)
    document = [sum(start <= token for start in starts) - 1 for token in range(num_tokens)]

    assert len(windows) == num_tokens // seq_len
    for index in range(len(windows)):
        window = windows[index]
        for offset in range(seq_len):
            token = index * seq_len + offset
            follows = token + 1 < num_tokens and document[token + 1] == document[token]
            assert window["labels"][offset] == (token + 1 if follows else IGNORED)
            assert window["position_ids"][offset] == token - max(starts[document[token]], index * seq_len)


def test_isolation_needs_the_starts(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    np.arange(16, dtype="<u4").tofile(path)

    with pytest.raises(VerificationError, match="where the documents"):
        TokenWindows(path, seq_len=8, isolate_documents=True)


class Killed(BaseException):
    """Stands for a process that ends anywhere."""


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_an_interrupted_token_file_is_continued_to_the_same_bytes(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    source = tmp_path / f"x{suffix}"
    lines = [f"the old river {number} keeps one letter" for number in range(2000)]
    rows = [json.dumps({"text": line}) if suffix == ".jsonl" else line for line in lines]
    source.write_text("\n".join(rows) + "\n")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    written = write_tokens(str(source), "train", tiny_tokenizer, whole, max_tokens=40_000)
    monkeypatch.setattr(packing, "SAVE_EVERY_TOKENS", 2000)
    calls = itertools.count()
    real, texts = tokenise.tokenise_all, []
    monkeypatch.setattr(tokenise, "GROUP_DOCUMENTS", 64 if suffix == ".jsonl" else 1)

    def killed_later(spec: str, group: Any, tokenizer: Any, **how: Any) -> Any:
        if next(calls) == (11 if suffix == ".jsonl" else 1):
            raise Killed
        texts.extend(group)
        return real(spec, group, tokenizer, **how)

    monkeypatch.setattr(tokenise, "tokenise_all", killed_later)
    with pytest.raises(Killed):
        write_tokens(str(source), "train", tiny_tokenizer, parts, max_tokens=40_000)
    assert parts.stat().st_size > 0
    texts.clear()
    assert write_tokens(str(source), "train", tiny_tokenizer, parts, max_tokens=40_000) == written

    assert texts
    assert lines[0] not in str(texts[0])  # it did not start from the first document
    for name in (lambda path: path, starts_path):
        assert name(parts).read_bytes() == name(whole).read_bytes()


def test_a_finished_token_file_is_kept_and_another_text_starts_anew(
    make_text: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (make_text(num_words=100, seed=seed) for seed in range(2))
    path = tmp_path / "tokens"
    num_tokens = write(one, tiny_tokenizer, path)
    monkeypatch.setattr(packing, "Documents", None)
    assert write(one, tiny_tokenizer, path) == num_tokens
    monkeypatch.undo()
    assert write(other, tiny_tokenizer, path) == len(tokens_of(path))
    assert tokens_of(path) == ids_of(tiny_tokenizer, other.read_text())


def test_a_damaged_token_file_is_named_before_it_is_used(
    tiny_text: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "tokens"
    num_tokens = write(tiny_text, tiny_tokenizer, path)
    for file in (path, starts_path(path)):
        whole = file.read_bytes()
        for damaged in (whole[:-1], whole + b"\0", bytes([whole[0] ^ 1]) + whole[1:], None):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            with pytest.raises(VerificationError, match="damaged") as caught:
                write(tiny_text, tiny_tokenizer, path)
            assert caught.value.where == str(file)
        file.write_bytes(whole)
    assert write(tiny_text, tiny_tokenizer, path) == num_tokens
    progress_path(path).unlink()
    path.write_bytes(b"what another process left")
    assert write(tiny_text, tiny_tokenizer, path) == num_tokens
    assert tokens_of(path) == ids_of(tiny_tokenizer, tiny_text.read_text())


def test_texts_of_several_files_are_documents_with_an_end(tmp_path: Path, tiny_tokenizer: Any) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("river", "stone", "winter"):
        (folder / f"{name}.md").write_text(f"{name} {name}\n" * 3000)  # several pieces each
    path = tmp_path / "tokens"
    write(folder, tiny_tokenizer, path)
    (ends,) = np.nonzero(np.fromfile(path, "<u4") == tiny_tokenizer.eos_token_id)

    assert len(ends) == 3
    assert starts_of(path) == [0, ends[0] + 1, ends[1] + 1]
    assert text_record(path)["num_documents"] == 3
