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
    remove_tokens,
    starts_path,
    text_record,
    write_tokens,
)

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

    assert write_tokens(str(tiny_text), "all", tiny_tokenizer, path, max_tokens=budget) == budget
    assert np.fromfile(path, "<u4").tolist() == ids_of(tiny_tokenizer, tiny_text.read_text())[:budget]


def test_token_file_of_a_short_text_holds_all_of_it(
    make_text: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    text = make_text(num_words=50)
    written = write_tokens(str(text), "all", tiny_tokenizer, tmp_path / "tokens", max_tokens=10**6)

    assert written == len(ids_of(tiny_tokenizer, text.read_text()))


def write_documents(path: Path, tokenizer: Any, texts: list[str]) -> Path:
    rows = path.with_suffix(".jsonl")
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    write_tokens(str(rows), "all", tokenizer, path, max_tokens=10**6)
    return path


def isolated(path: Path, starts: list[int], num_tokens: int, seq_len: int) -> TokenWindows:
    """Windows over the tokens 0, 1, 2, ... of documents that start as given."""
    np.arange(num_tokens, dtype="<u4").tofile(path)
    np.asarray(starts, dtype="<u8").tofile(starts_path(path))
    return TokenWindows(path, seq_len=seq_len, isolate_documents=True)


def test_labels_are_the_next_tokens_over_the_edges_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    np.arange(2 * SEQ_LEN + 1, dtype="<u4").tofile(path)
    windows = TokenWindows(path, seq_len=SEQ_LEN)

    assert [len(windows), sorted(windows[0])] == [2, ["input_ids", "labels"]]
    for index in range(2):
        assert windows[index]["labels"].tolist() == (windows[index]["input_ids"] + 1).tolist()
        assert windows[index]["labels"].dtype == np.int64


def test_the_last_token_of_the_text_has_no_label(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    np.arange(2 * SEQ_LEN, dtype="<u4").tofile(path)
    labels = TokenWindows(path, seq_len=SEQ_LEN)[1]["labels"]

    assert labels[-1] == IGNORED
    assert labels[:-1].tolist() == list(range(SEQ_LEN + 1, 2 * SEQ_LEN))


def test_document_starts_are_kept_beside_the_tokens(tmp_path: Path, tiny_tokenizer: Any) -> None:
    texts = ["river", "winter", "stone wall"]
    path = write_documents(tmp_path / "tokens", tiny_tokenizer, ["", *texts, ""])
    lengths = [len(ids_of(tiny_tokenizer, text)) + 1 for text in texts]
    ends = np.cumsum(lengths)
    tokens = np.fromfile(path, "<u4")

    assert np.fromfile(starts_path(path), "<u8").tolist() == [0, *ends[:-1].tolist()]
    assert (tokens[ends - 1] == tiny_tokenizer.eos_token_id).all()


def test_a_text_file_is_one_document(make_text: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    text = make_text(num_words=9000)  # several blocks
    path = tmp_path / "tokens"
    write_tokens(str(text), "all", tiny_tokenizer, path, max_tokens=10**6)

    assert np.fromfile(starts_path(path), "<u8").tolist() == [0]
    assert tiny_tokenizer.eos_token_id not in np.fromfile(path, "<u4")


def test_documents_cut_off_by_the_budget_leave_no_start_behind_it(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    rows = tmp_path / "x.jsonl"
    rows.write_text("".join(json.dumps({"text": "stone"}) + "\n" for _ in range(9)))
    path = tmp_path / "tokens"
    length = len(ids_of(tiny_tokenizer, "stone")) + 1
    write_tokens(str(rows), "all", tiny_tokenizer, path, max_tokens=2 * length)

    assert np.fromfile(starts_path(path), "<u8").tolist() == [0, length]


def test_isolated_documents_by_hand(tmp_path: Path) -> None:
    windows = isolated(tmp_path / "tokens", [0, 3, 4, 8, 13], 16, 8)
    no = IGNORED

    assert windows[0]["position_ids"].tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert windows[0]["labels"].tolist() == [1, 2, no, no, 5, 6, 7, no]
    assert windows[1]["position_ids"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert windows[1]["labels"].tolist() == [9, 10, 11, 12, no, 14, 15, no]


def test_a_document_over_two_windows_keeps_the_label_between_them(tmp_path: Path) -> None:
    windows = isolated(tmp_path / "tokens", [0, 5], 17, 8)

    assert windows[0]["labels"][-1] == windows[1]["input_ids"][0]
    assert windows[1]["position_ids"].tolist() == list(range(8))


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), seq_len=st.integers(1, 12))
def test_isolated_documents_by_brute_force(
    lengths: list[int], seq_len: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Token by token: the document it is in, and where that began, or the window did."""
    num_tokens = max(sum(lengths), seq_len)
    ends = [*np.cumsum(lengths)[:-1].tolist(), num_tokens]
    starts = [0, *ends[:-1]]
    windows = isolated(tmp_path_factory.mktemp("tokens") / "x", starts, num_tokens, seq_len)
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
    one, other = (str(make_text(num_words=100, seed=seed)) for seed in range(2))
    path = tmp_path / "tokens"
    num_tokens = write_tokens(one, "all", tiny_tokenizer, path, max_tokens=10**6)
    monkeypatch.setattr(packing, "Documents", None)
    assert write_tokens(one, "all", tiny_tokenizer, path, max_tokens=10**6) == num_tokens
    monkeypatch.undo()
    write_tokens(other, "all", tiny_tokenizer, path, max_tokens=10**6)
    assert np.fromfile(path, "<u4").tolist() == ids_of(tiny_tokenizer, Path(other).read_text())

    remove_tokens(path)
    assert not any(file.exists() for file in (path, starts_path(path), progress_path(path)))


def test_a_damaged_token_file_is_named_before_it_is_used(
    tiny_text: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "tokens"

    def write() -> int:
        return write_tokens(str(tiny_text), "all", tiny_tokenizer, path, max_tokens=10**6)

    num_tokens = write()
    for file in (path, starts_path(path)):
        whole = file.read_bytes()
        for damaged in (whole[:-1], whole + b"\0", bytes([whole[0] ^ 1]) + whole[1:], None):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            with pytest.raises(VerificationError, match="damaged") as caught:
                write()
            assert caught.value.where == str(file)
        file.write_bytes(whole)
    assert write() == num_tokens
    progress_path(path).unlink()
    path.write_bytes(b"what another process left")
    assert write() == num_tokens
    assert np.fromfile(path, "<u4").tolist() == ids_of(tiny_tokenizer, tiny_text.read_text())


def test_texts_of_several_files_are_documents_with_an_end(tmp_path: Path, tiny_tokenizer: Any) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("river", "stone", "winter"):
        (folder / f"{name}.md").write_text(f"{name} {name}\n" * 3000)  # several pieces each
    path = tmp_path / "tokens"
    write_tokens(str(folder), "all", tiny_tokenizer, path, max_tokens=10**6)
    tokens = np.fromfile(path, "<u4")
    (ends,) = np.nonzero(tokens == tiny_tokenizer.eos_token_id)

    assert len(ends) == 3
    assert np.fromfile(starts_path(path), "<u8").tolist() == [0, ends[0] + 1, ends[1] + 1]
    assert text_record(path)["num_documents"] == 3
