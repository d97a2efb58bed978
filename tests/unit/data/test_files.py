"""Which files of a directory or pattern are a text, and what their content says of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compressor.core.errors import UsageError
from compressor.data.files import find_files
from compressor.data.sources import describe_source, source_fingerprint, survey
from tests.unit.data.texts import (
    TEXTS,
    chat,
    plain_text,
    refused,
    share_gpt,
    texts_of,
    write_packed,
    write_rows,
    write_table,
)


def test_directories_and_globs_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    texts = {"c.jsonl": "three", "a.jsonl": "one", "b/x.jsonl.gz": "two", ".hidden/y.jsonl": "no"}
    for name, text in texts.items():
        write_packed(folder / name, json.dumps({"text": text}) + "\n")

    assert texts_of(folder) == ["one", "two", "three"]
    assert texts_of(folder / "*.jsonl") == ["one", "three"]
    assert texts_of(folder / "**" / "*.jsonl*") == ["one", "two", "three"]
    before = source_fingerprint(str(folder))
    (folder / "a.jsonl").rename(folder / "d.jsonl")
    assert source_fingerprint(str(folder)) != before
    with pytest.raises(UsageError, match="no file matches"):
        texts_of(folder / "*.csv")


def test_a_directory_of_plain_texts_is_a_document_per_file(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text(f"file {number}\n" * 20)
    pieces = texts_of(folder)

    assert [(piece.begins, piece.ends) for piece in pieces] == [(True, True)] * 5
    assert plain_text(folder) == "".join(f"file {number}\n" * 20 for number in range(5))
    assert plain_text(folder, "train") + plain_text(folder, "held_out") == plain_text(folder)
    assert plain_text(folder, "held_out") == "file 4\n" * 9


def test_tables_and_plain_texts_are_not_mixed(tmp_path: Path) -> None:
    write_table(tmp_path / "x.parquet")
    (tmp_path / "notes.md").write_text("what we thought of it")

    assert "notes.md" in str(refused(tmp_path, "partly tables").found)
    assert texts_of(tmp_path / "*.parquet") == TEXTS


CARDS = ("README.md", "README", "readme.rst", "LICENSE", "LICENSE.txt", "LICENCE", "NOTICE", "CITATION.cff")


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl", "x.csv", "deeper/x.jsonl"])
def test_cards_beside_data_files_are_no_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write_table(tmp_path / name)
    for card in (*CARDS, "dataset_infos.json", ".gitattributes"):
        (tmp_path / card).write_text("{}" if card.endswith("json") else "what this data set is about")

    assert texts_of(tmp_path) == TEXTS
    assert find_files(str(tmp_path)).cards == tuple(sorted((*CARDS, "dataset_infos.json")))
    assert describe_source(str(tmp_path))["left_out"] == sorted((*CARDS, "dataset_infos.json"))
    if "/" not in name:
        assert texts_of(tmp_path / "*") == TEXTS


@pytest.mark.parametrize("name", ["README.md", "LICENSE"])
def test_a_card_alone_or_among_plain_texts_is_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("one")
    assert plain_text(tmp_path / name) == plain_text(tmp_path) == "one"
    (tmp_path / "z.txt").write_text("two")
    assert plain_text(tmp_path) == "onetwo"


def test_data_files_named_like_cards_are_data(tmp_path: Path) -> None:
    for name in ("licenses.jsonl", "readme_texts.jsonl", "notice.jsonl"):
        write_rows(tmp_path / name, {"text": name})

    assert texts_of(tmp_path) == ["licenses.jsonl", "notice.jsonl", "readme_texts.jsonl"]


@pytest.mark.parametrize(
    ("train", "others"),
    [
        (["train.jsonl"], ["test.jsonl"]),
        (["train.jsonl"], ["validation.jsonl", "dev.jsonl", "eval.jsonl"]),
        (
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
            ["data/test-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"],
        ),
        (["train/part1.csv", "train/part2.csv"], ["test/part1.csv", "val/part1.csv"]),
        (["squad-train-v1.jsonl"], ["squad-test-v1.jsonl"]),
        (["wiki.train.tokens"], ["wiki.test.tokens", "wiki.valid.tokens"]),
        (["Train.jsonl.gz"], ["Test.jsonl.gz"]),
    ],
)
def test_of_several_splits_train_is_read(tmp_path: Path, train: list[str], others: list[str]) -> None:
    """As `datasets` finds the splits of a directory, where it reads the format."""
    for name in (*train, *others):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if name.endswith("parquet"):
            pq.write_table(pa.table({"text": [name]}), path)
        else:
            write_packed(
                path, f"text\n{name}\n" if name.endswith("csv") else json.dumps({"text": name}) + "\n"
            )

    assert texts_of(tmp_path) == train
    assert list(find_files(str(tmp_path)).other_splits) == sorted(others)
    assert texts_of(tmp_path / "**" / "*.*") == train
    assert [texts_of(tmp_path / name) for name in others] == [[name] for name in others]
    if not train[0].endswith(("tokens", "gz")):
        theirs = datasets.load_dataset(str(tmp_path), split="train")
        assert theirs["text"] == train


@pytest.mark.parametrize(
    "names",
    [
        ["train.jsonl", "train2.jsonl", "extra.jsonl"],
        ["test.jsonl", "validation.jsonl"],
        ["trains.jsonl", "contest.jsonl", "latest.jsonl"],
        ["train_test.jsonl", "more.jsonl"],
    ],
)
def test_files_without_a_split_beside_the_training_one_are_all_read(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write_rows(tmp_path / name, {"text": name})

    assert texts_of(tmp_path) == sorted(names)
    assert find_files(str(tmp_path)).other_splits == ()


def test_a_directory_of_code_with_names_of_splits_is_read_whole(tmp_path: Path) -> None:
    names = ["model.py", "test_model.py", "tools/evaluation.py", "train.py"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# {name}\n")

    assert plain_text(tmp_path) == "".join(f"# {name}\n" for name in names)


ROWS_OF_JSON = [
    '{"text": "a"}\n{"text": "b"}\n',
    '\n\n{"text": "a"}\n\n{"text": "b"}',
    '\ufeff{"id": 1, "text": "a"}\r\n{"id": 2, "text": "b"}\r\n',
    '[{"text": "a"}, {"text": "b"}]',
    '[\n  {\n    "text": "a"\n  },\n  {\n    "text": "b"\n  }\n]\n',
]


@pytest.mark.parametrize("content", ROWS_OF_JSON)
@pytest.mark.parametrize("name", ["data.txt", "data", "data.jsonl.txt", "data.md", "data.dat", "data.txt.gz"])
def test_rows_of_json_under_another_name_are_rows(tmp_path: Path, name: str, content: str) -> None:
    path = write_packed(tmp_path / name, content)

    assert texts_of(path) == ["a", "b"]
    (tmp_path / "named.json").write_text(content, encoding="utf-8")
    assert source_fingerprint(str(path)) == source_fingerprint(str(tmp_path / "named.json"))


@pytest.mark.parametrize(
    "row",
    [
        {"text": "long " * 100_000},
        {"messages": chat(user="q")},
        {"id": 1, **share_gpt(human="q")},
        {"instruction": "do", "output": "done"},
        {"prompt": "p", "completion": "c"},
    ],
)
def test_rows_of_every_form_are_told_from_plain_text(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "data.txt"
    for content in (json.dumps(row), (json.dumps(row) + "\n") * 3, json.dumps([row] * 3)):
        path.write_text(content)
        assert not survey(str(path)).is_plain


def test_a_broken_row_under_another_name_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text('{"text": "a"}\n{"text": "b"}\nnot JSON\n')

    assert refused(path, "not JSON").where == f"{path}:3"


@pytest.mark.parametrize(
    "content",
    [
        '{"text": "a"}\nThis is what a row looks like.\n',
        '[{"text": "a"}]\nThis is what a list of rows looks like.\n',
        '{"name": "package", "version": 1}\n{"name": "other"}\n',
        '{\n  "name": "package"\n}\n',
        "{ int text; }\n{ int text; }\n",
        "[{ text }]\n",
        '[1, {"text": "a"}]\n',
        'As follows:\n{"text": "a"}\n{"text": "b"}\n',
        "{" * 5000,
        '[{"text": ' + "[" * 100_000,
        "text, and content\nmore\n",
        "Dear reader,\ntext follows\n",
        "text\none\ntwo\n",
        "prompt,completion",
        "a,b\n1,2\n",
    ],
)
@pytest.mark.parametrize("name", ["x.txt", "x.md", "x.rst", "x.py", "x"])
def test_plain_text_that_shows_json_or_commas_is_plain_text(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)

    assert plain_text(path) == content


@pytest.mark.parametrize(
    ("header", "suffix"),
    [
        ("id,text", ".csv"),
        (",text,label", ".csv"),
        ('"prompt","completion"', ".csv"),
        ("id\ttext", ".tsv"),
        ("\ufeffinstruction,input,output\r", ".csv"),
    ],
)
@pytest.mark.parametrize("name", ["x.txt", "x", "x.dat"])
def test_a_table_under_another_name_is_refused(tmp_path: Path, name: str, header: str, suffix: str) -> None:
    path = tmp_path / name
    path.write_text(f"{header}\n1,2,3\n", encoding="utf-8")

    error = refused(path, "like a table")
    assert error.where == str(path)
    assert suffix in str(error.expected)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"%PDF-1.4\nsome", "PDF"),
        (b"PK\x03\x04rest", "zip"),
        (b"\x00\x01\x02\xff\xfe" * 50, "binary"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"BZh91AY", "bzip2"),
    ],
)
@pytest.mark.parametrize("name", ["x", "x.txt", "x.md"])
def test_binary_content_is_refused_by_name(tmp_path: Path, name: str, content: bytes, found: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    error = refused(path, "not text")
    assert error.where == str(path)
    assert found in str(error.found)


def test_other_encodings_name_the_place(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbfgood line\nsecond \xe9t\xe9\n")
    assert refused(path, "not UTF-8").where == f"{path}:2, byte 20"
    path.write_bytes("sixteen".encode("utf-16"))
    assert "utf-16" in str(refused(path, "not UTF-8").hint)
    path.write_bytes(("é" * 700_000).encode() + b"\n\xff")  # behind the first chunk, which cuts a character
    assert refused(path, "not UTF-8").where == f"{path}:2, byte 1400001"


def test_marks_and_nuls_in_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbfone\0two\r\nthree\rfour")

    assert plain_text(path) == "one\0two\nthree\nfour"


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
def test_pipes_and_devices_are_no_files(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    for path in (tmp_path / name, Path("/dev/zero"), tmp_path):
        refused(path, "not a regular file")


@pytest.mark.parametrize("text", ["one two three " * 20_000, "word " * 9 + "\n", "x" * 50])
def test_a_text_of_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.txt"
    path.write_text(text)
    train, held_out = (plain_text(path, split) for split in ("train", "held_out"))

    assert train + held_out == text
    assert train
    if " " in text.strip():
        assert train[-1] == " "
        assert len(held_out) == pytest.approx(len(text) / 10, abs=6)


def test_very_long_lines_come_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    text = "seven letters " * 300_000
    path.write_text(text)
    pieces = texts_of(path)

    assert len(pieces) > 2
    assert "".join(piece.text for piece in pieces) == text
    assert all(piece.text.endswith(" ") for piece in pieces)
