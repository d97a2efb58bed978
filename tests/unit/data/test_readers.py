"""Every kind of local text against what another program reads of the same file."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
from base64 import b64decode
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compressor.core.errors import UsageError
from compressor.data import files, readers
from compressor.data.conversations import render
from compressor.data.files import find_files
from compressor.data.rows import Completion, Conversation
from compressor.data.sources import describe_source, documents, source_fingerprint, survey
from tests.tiny_models import make_tokenizer

TEXTS = ['one, "quoted" river', "two\nlines of stone", "drei Wörter — 三つ 🙂", "NA", "  spaces kept  "]
# `printf 'the old river\n' | zstd`, twice, one frame behind the other.
ZSTD_FRAMES = b64decode("KLUv/QRYcQAAdGhlIG9sZCByaXZlcgoU2ZR/") * 2


@pytest.fixture(autouse=True)
def _data_sets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def texts_of(spec: str | Path) -> list[Any]:
    return list(documents(str(spec), "all"))


def plain_text(spec: str | Path, split: Any = "all") -> str:
    return "".join(piece.text for piece in documents(str(spec), split))  # type: ignore[union-attr]


def write_table(path: Path, column: str = "text") -> Path:
    kind = path.name.split(".")[1]
    if kind == "parquet":
        pq.write_table(pa.table({column: TEXTS, "id": list(range(len(TEXTS)))}), path)
    elif kind in ("csv", "tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
            writer.writerows([("id", column), *enumerate(TEXTS)])
    else:
        rows = [{"id": number, column: text} for number, text in enumerate(TEXTS)]
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.mark.parametrize("column", ["text", "content"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.ndjson", "x.json", "x.csv", "x.tsv", "x.parquet"])
def test_tables_hold_what_datasets_reads(tmp_path: Path, name: str, column: str) -> None:
    path = write_table(tmp_path / name, column)
    builder = {"jsonl": "json", "ndjson": "json", "tsv": "csv"}.get(name.split(".")[1], name.split(".")[1])
    how = {"sep": "\t" if name.endswith("tsv") else ",", "keep_default_na": False} if builder == "csv" else {}
    theirs = datasets.load_dataset(builder, data_files=str(path), split="train", **how)

    assert texts_of(path) == theirs[column] == TEXTS


def test_plain_text_is_what_datasets_reads_of_it(tmp_path: Path) -> None:
    for name in ("x.txt", "x.md", "x.utf8", "x.py", "README"):
        path = tmp_path / name
        path.write_text("one\ntwo\r\n\nthree — 三つ", encoding="utf-8", newline="")
        theirs = datasets.load_dataset("text", data_files=str(path), split="train", sample_by="document")

        assert plain_text(path) == theirs["text"][0].replace("\r\n", "\n")


@pytest.mark.parametrize("program", ["gzip", "zstd"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.txt"])
def test_what_other_programs_compress_is_read_as_the_file_itself(
    tmp_path: Path, name: str, program: str
) -> None:
    path = tmp_path / name
    if name == "x.txt":
        path.write_text("\n".join(TEXTS))
    else:
        write_table(path)
    packed = tmp_path / f"{name}.{'gz' if program == 'gzip' else 'zst'}"
    try:
        content = subprocess.run([program, "-c", str(path)], check=True, capture_output=True).stdout
    except FileNotFoundError:
        pytest.skip(f"no {program} on PATH")
    packed.write_bytes(content)

    assert texts_of(packed) == texts_of(path)
    # Also where the name does not say so.
    (tmp_path / "sub").mkdir()
    unnamed = tmp_path / "sub" / name
    unnamed.write_bytes(content)
    assert texts_of(unnamed) == texts_of(path)


def test_several_zstd_frames(tmp_path: Path) -> None:
    path = tmp_path / "x.txt.zst"
    path.write_bytes(ZSTD_FRAMES)

    assert plain_text(path) == "the old river\n" * 2


@pytest.mark.parametrize("name", ["x.txt.gz", "x.jsonl.gz", "x.txt.zst", "x.jsonl.zst"])
def test_damaged_compressed_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = os.urandom(1 << 16).hex().encode()
    packed = gzip.compress(content) if name.endswith("gz") else pa.compress(content, "zstd", asbytes=True)
    path.write_bytes(packed[: len(packed) // 2])

    with pytest.raises(UsageError, match="cannot be unpacked") as caught:
        survey(str(path))
    assert caught.value.where == str(path)
    path.write_bytes(b"not compressed at all")
    with pytest.raises(UsageError, match="not compressed as its name says"):
        survey(str(path))


def test_a_bomb_is_refused_before_it_fills_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_ALWAYS_UNPACKED_BYTES", 1 << 20)
    for name in ("x.txt.gz", "x.jsonl.zst"):
        path = tmp_path / name
        content = b"a" * (1 << 24)
        path.write_bytes(
            gzip.compress(content) if name.endswith("gz") else pa.compress(content, "zstd", asbytes=True)
        )
        with pytest.raises(UsageError, match="far more than a text"):
            survey(str(path))


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a"}, {"text": "b"}]',
        '[\n  {"text": "a"},\n  {"text": "b"}\n]\n',
        '{"data": [{"text": "a"}, {"text": "b"}]}',
        '{"version": 1,\n "rows": [{"text": "a"}, {"text": "b"}]}',
        '{"text": "a"}\n{"text": "b"}\n',
        '{"text": "a"}\n\n\n{"text": "b"}',
        '{\n "text": "a"\n}\n{\n "text": "b"\n}\n',
        '\ufeff[{"text": "a"}, {"text": "b"}]',
        '[{"text": "a"}]\n[{"text": "b"}]\n',
        '[{"text": "a"}][]\n\n[\n{"text": "b"}\n]',
        '[{"text": "a"}]\n{"text": "b"}\n',
        '{\n"text": "a"}\n[{"text": "b"}]\n',
        '[{"text": "a"}]\n{"data": [{"text": "b"}]}\n',
    ],
)
def test_forms_of_json(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content, encoding="utf-8")

    assert texts_of(path) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('[{"text": "a"},\n {"text": }]', 2),
        ('[{"text": "a"}\n\n {"text": "b"}]', 1),
        ('[{"text": "a"},\n', None),
        ('[{"text": "a"}]\n[{"text": "b"}\n', None),
        ('[{"text": "a"}]\n]\n{"text": "b"}\n', 2),
        ('[{"text": "a"}],\n[{"text": "b"}]\n', 1),
        ('[{"text": "a"}]\n\nand so on', 3),
        ('[{"text": "a"}]\n[{"body": "b"}]\n', 2),
        ('[{"text": "a"}]\n"b"\n', 2),
        ('{"text": "a"}\n{"body": "b"}\n', 2),
        ('[\n{"text": "a"},\n{"body": "b"}]', 3),
    ],
)
def test_broken_json_names_its_line(tmp_path: Path, content: str, line: int | None) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)

    with pytest.raises(UsageError) as caught:
        survey(str(path))
    assert str(caught.value.where).startswith(str(path) if line is None else f"{path}:{line}")


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_json_without_a_bottom(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"text": "a"}\n' + '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n")

    with pytest.raises(UsageError, match="nested too deeply") as caught:
        survey(str(path))
    assert str(caught.value.where).startswith(f"{path}:2")


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    for name in ("x.jsonl", "x.csv"):
        path = tmp_path / name
        path.write_text('text\n"' + "a" * 2000)
        with pytest.raises(UsageError, match=r"too long|not JSON"):
            survey(str(path))


@pytest.mark.parametrize(
    ("content", "message", "line"),
    [
        ("id,text\n1,a\n2\n", "number of fields", 3),
        ('id,text\n1,"two\nlines"\n3,a,b\n', "number of fields", 4),
        ('id,text\n1,"never closed\n2,b\n', "not CSV", 2),
        ("id,body\n1,a\n", "holds no text", None),
    ],
)
def test_broken_csv(tmp_path: Path, content: str, message: str, line: int | None) -> None:
    path = tmp_path / "x.csv"
    path.write_text(content)

    with pytest.raises(UsageError, match=message) as caught:
        survey(str(path))
    assert caught.value.where == (f"{path}:{line}" if line else str(path))


@pytest.mark.parametrize("has_splits", [False, True])
def test_a_folder_saved_by_datasets(tmp_path: Path, has_splits: bool) -> None:
    rows = [{"messages": [{"role": "user", "content": text}], "id": 1} for text in TEXTS]
    rows[1]["messages"][0]["tool_calls"] = []
    data = datasets.Dataset.from_list(rows).select([3, 1, 0])  # an order of its own
    saved = tmp_path / "saved"
    (datasets.DatasetDict({"test": data.select([0]), "train": data}) if has_splits else data).save_to_disk(
        saved
    )
    found = texts_of(saved)

    assert [document.messages[0]["content"] for document in found] == [TEXTS[3], TEXTS[1], TEXTS[0]]
    as_lines = tmp_path / "as-lines.jsonl"
    as_lines.write_text("\n".join(json.dumps({"messages": rows[i]["messages"]}) for i in (3, 1, 0)) + "\n")
    assert source_fingerprint(str(saved)) == source_fingerprint(str(as_lines))


def test_directories_and_globs_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for name, text in (
        ("c.jsonl", "three"),
        ("a.jsonl", "one"),
        ("b/x.jsonl.gz", "two"),
        (".hidden/y.jsonl", "no"),
    ):
        content = (json.dumps({"text": text}) + "\n").encode()
        (folder / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)

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

    with pytest.raises(UsageError, match="partly tables") as caught:
        survey(str(tmp_path))
    assert "notes.md" in str(caught.value.found)
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
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")

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
            content = f"text\n{name}\n" if name.endswith("csv") else json.dumps({"text": name}) + "\n"
            path.write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())

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
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")

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
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())

    assert texts_of(path) == ["a", "b"]
    (tmp_path / "named.json").write_text(content, encoding="utf-8")
    assert source_fingerprint(str(path)) == source_fingerprint(str(tmp_path / "named.json"))


@pytest.mark.parametrize(
    "row",
    [
        {"text": "long " * 100_000},
        {"messages": [{"role": "user", "content": "q"}]},
        {"id": 1, "conversations": [{"from": "human", "value": "q"}]},
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

    with pytest.raises(UsageError, match="not JSON") as caught:
        survey(str(path))
    assert caught.value.where == f"{path}:3"


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

    with pytest.raises(UsageError, match="like a table") as caught:
        survey(str(path))
    assert caught.value.where == str(path)
    assert suffix in str(caught.value.expected)


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

    with pytest.raises(UsageError, match="no text") as caught:
        survey(str(path))
    assert caught.value.where == str(path)
    assert found in str(caught.value.found)


def test_other_encodings_name_the_place(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbfgood line\n" * 1 + b"second \xe9t\xe9\n")
    with pytest.raises(UsageError, match="not UTF-8") as caught:
        survey(str(path))
    assert caught.value.where == f"{path}:2, byte 20"
    path.write_bytes("sixteen".encode("utf-16"))
    with pytest.raises(UsageError, match="not UTF-8") as caught:
        survey(str(path))
    assert "utf-16" in str(caught.value.hint)
    path.write_bytes(("é" * 700_000).encode() + b"\n\xff")  # behind the first chunk, which cuts a character
    with pytest.raises(UsageError, match="not UTF-8") as caught:
        survey(str(path))
    assert caught.value.where == f"{path}:2, byte 1400001"


def test_marks_and_nuls_in_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbfone\0two\r\nthree\rfour")

    assert plain_text(path) == "one\0two\nthree\nfour"


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
def test_pipes_and_devices_are_no_files(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    for path in (tmp_path / name, Path("/dev/zero")):
        with pytest.raises(UsageError, match="no file"):
            survey(str(path))
    with pytest.raises(UsageError, match="no file"):
        survey(str(tmp_path))


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


EMPTY = {"text": "", "messages": []}
CHAT_ROW: dict[str, Any] = {
    "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
}


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"text": "", "content": "x"}, "x"),
        ({"text": None, "content": "x"}, "x"),
        ({"text": "a", "content": "x"}, "a"),
        ({"text": "", "prompt": "p ", "completion": "c"}, ("p ", "c")),
        ({"text": "", "messages": [{"role": "user", "content": "hi"}]}, ["user hi"]),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            ["user q", "assistant a"],
        ),
        ({"system": "be", "conversations": [{"from": "human", "value": "q"}]}, ["system be", "user q"]),
        ({"conversations": [{"role": "user", "content": "q"}]}, ["user q"]),
        ({"instruction": "do", "input": "this", "output": "done"}, ["user do\n\nthis", "assistant done"]),
        ({"instruction": "do", "input": "", "output": "done"}, ["user do", "assistant done"]),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                    }
                ]
            },
            ["user ab"],
        ),
        (
            {
                "prompt": [{"role": "user", "content": "q"}],
                "completion": [{"role": "assistant", "content": "a"}],
            },
            ["user q", "assistant a"],
        ),
        (
            {
                "system": "be",
                "prompt": [{"role": "user", "content": "q"}],
                "completion": [{"role": "assistant", "content": "a"}],
            },
            ["system be", "user q", "assistant a"],
        ),
        (
            {
                "system_prompt": "be",
                "prompt": [{"role": "system", "content": "be"}, {"role": "user", "content": "q"}],
                "completion": [{"role": "assistant", "content": "a"}],
            },
            ["system be", "user q", "assistant a"],
        ),
        (
            {"system": "be", "messages": [{"role": "system", "content": "be"}]},
            ["system be"],
        ),
        ({"prompt": "p ", "completion": "c", "system": "", "tools": []}, ("p ", "c")),
        ({"instruction": "do", "context": "this", "response": "done"}, ["user do\n\nthis", "assistant done"]),
        ({"prompt": "p ", "response": "c"}, ("p ", "c")),
        ({"instruction": "do", "output": ""}, None),
        ({"text": " ", "content": "x"}, "x"),
        ({"messages": [{"role": "gpt", "content": "a"}]}, ["assistant a"]),
        (
            {"messages": [{"role": "User", "content": "q"}, {"role": "Assistant", "content": "a"}]},
            ["user q", "assistant a"],
        ),
        (
            {"conversations": [{"from": "Human", "value": "q"}, {"from": "GPT", "value": "a"}]},
            ["user q", "assistant a"],
        ),
        (
            {"messages": [{"role": "SYSTEM", "content": "be"}, {"role": "Critic", "content": "a"}]},
            ["system be", "Critic a"],
        ),
        (
            {"system_prompt": "be", "conversations": [{"from": "human", "value": "q"}]},
            ["system be", "user q"],
        ),
        ({"text": ""}, None),
        ({"messages": []}, None),
        ({"messages": [{"role": "user", "content": ""}]}, None),
        ({"text": None, "content": ""}, None),
        ({"prompt": "", "completion": ""}, None),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_fields_of_rows(tmp_path: Path, row: dict[str, Any], found: Any, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([row, {**row}]), path)
    else:
        path.write_text(
            json.dumps(row) + "\n\n" + json.dumps(row) + "\n" + json.dumps({"text": "end"}) + "\n"
        )

    def plainly(document: Any) -> Any:
        if isinstance(document, Completion):
            return document.prompt, document.completion
        if isinstance(document, Conversation):
            return [f"{message['role']} {message['content']}" for message in document.messages]
        return document

    if kind == "parquet" and found is None:
        with pytest.raises(UsageError, match="empty"):
            survey(str(path))
        return
    expected = [found, found] if found is not None else []
    assert [plainly(document) for document in texts_of(path)] == [
        *expected,
        *(["end"] if kind == "jsonl" else []),
    ]
    assert survey(str(path)).num_empty == (0 if kind == "parquet" else 1 if found is not None else 3)


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"in": value}
    return value


def row_with(deep: Any, place: str) -> dict[str, Any]:
    call = {"function": {"name": "f", "arguments": json.dumps(deep) if place == "JSON" else deep}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    tool = {"type": "function", "function": {"name": "f", "parameters": deep}}
    user, plain = CHAT_ROW["messages"]
    return {
        "message": {"messages": [{**user, "deep": deep}, plain]},
        "arguments": {"messages": [user, answer]},
        "JSON": {"messages": [user, answer]},
        "calls as JSON": {"messages": [user, {**answer, "tool_calls": json.dumps([call])}]},
        "tools": {**CHAT_ROW, "tools": [tool]},
        "tools as JSON": {**CHAT_ROW, "tools": json.dumps([tool])},
        "extras": {**CHAT_ROW, "chat_template_kwargs": {"deep": deep}},
        "prompt": {"prompt": [{**user, "deep": deep}], "completion": [plain]},
    }[place]


@pytest.mark.parametrize(
    "place",
    ["message", "arguments", "JSON", "calls as JSON", "tools", "tools as JSON", "extras", "prompt"],
)
def test_conversations_without_a_bottom_name_their_line(tmp_path: Path, place: str) -> None:
    path = tmp_path / "x.jsonl"
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ tools | tojson }}{% for m in messages %}{{ m | tojson }}{% endfor %}"
    path.write_text(json.dumps(row_with(nested(80), place)) + "\n")
    (document,) = texts_of(path)
    theirs = tokenizer.apply_chat_template(document.messages, tools=document.tools, tokenize=False)
    if place != "JSON":  # which is given to this template as an object
        assert render(document, tokenizer) == theirs
    for levels in (100, 300, 900):
        path.write_text(json.dumps({"text": "a"}) + "\n" + json.dumps(row_with(nested(levels), place)) + "\n")
        with pytest.raises(UsageError, match="nested too deeply") as caught:
            survey(str(path))
        assert str(caught.value.where).startswith(f"{path}:2")


@pytest.mark.parametrize("system", ["", "be"])
def test_the_prompt_is_all_but_the_completion_with_a_system_beside_it(tmp_path: Path, system: str) -> None:
    path = tmp_path / "x.jsonl"
    sides = {"prompt": CHAT_ROW["messages"][:1], "completion": CHAT_ROW["messages"][1:]}
    path.write_text(json.dumps({"system": system, **sides}) + "\n")
    (document,) = texts_of(path)

    assert document.messages[document.num_prompt_messages :] == sides["completion"]


@pytest.mark.parametrize(
    "row",
    [
        {"body": "a"},
        ["a"],
        "a",
        {"text": 3},
        {"messages": "hello"},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": 3}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]},
        {"messages": [{"role": "assistant", "function_call": {"name": "f"}, "content": ""}]},
        {"conversations": [{"from": "narrator", "value": "q"}]},
        {"conversations": [{"from": ["human"], "value": "q"}]},
        {"prompt": "p"},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "completion": "c", "system": "be"},
        {"prompt": "", "completion": "c", "system_prompt": "be"},
        {"prompt": "p", "response": "c", "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"prompt": "p", "completion": "c", "tools": '[{"name": "f"}]'},
        {"prompt": "p", "completion": "c", "functions": [{"name": "f"}]},
        {"system": "be", "messages": [{"role": "system", "content": "do"}, {"role": "user", "content": "q"}]},
        {
            "system": "be",
            "prompt": [{"role": "system", "content": "do"}, {"role": "user", "content": "q"}],
            "completion": [{"role": "assistant", "content": "a"}],
        },
        {"instruction": "do", "input": "this"},
        {"messages": [{"role": "user", "content": "a"}], "system_prompt": ["be"]},
        {"messages": [{"role": "user", "content": "a"}], "functions": [{"name": "f"}]},
        {"instruction": "do", "output": "done", "history": [["a", "b"]]},
        {"messages": [{"role": "user", "content": "a"}], "tools": "weather"},
        {"conversations": [{"from": "human"}]},
        {"conversations": [{"from": "gpt", "value": None}]},
        {"messages": [{"role": "user", "content": None}]},
        {"conversations": [{"from": "function_call", "value": "look it up"}]},
        {"conversations": [{"from": "function_call", "value": '{"name": "f"}'}]},
        {"conversations": [{"from": "function_call", "value": '["f", "g"]'}]},
        {"conversations": [{"from": "function_call", "value": "[]"}]},
        {"conversations": [{"from": "function_call", "value": ""}]},
        {"messages": [{"role": "function_call", "content": "look it up"}]},
    ],
)
def test_rows_that_are_refused_name_their_line(tmp_path: Path, row: Any) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"text": "fine"}) + "\n\n" + json.dumps(row) + "\n")

    with pytest.raises(UsageError) as caught:
        survey(str(path))
    assert caught.value.where == f"{path}:3"


@pytest.mark.parametrize(
    "row",
    [
        '{"text": "broken \\ud83d here"}',
        '{"messages": [{"role": "user", "content": "\\uDC00 at the start"}]}',
        '{"prompt": "p", "completion": "at the end \\ud83d"}',
    ],
)
def test_lone_surrogates_become_the_replacement_character(tmp_path: Path, row: str) -> None:
    path = tmp_path / "x.jsonl"
    whole = '{"text": "a whole pair \\ud83d\\ude00"}'
    path.write_text(f"{whole}\n{row}\n")
    first, second = texts_of(path)

    assert first == "a whole pair 😀"
    assert "\ufffd" in str(second)
    assert survey(str(path)).num_replaced == 1


def test_readers_are_of_every_kind() -> None:
    assert set(readers._READERS) == {"jsonl", "json", "csv", "tsv", "parquet"}
