"""Every kind of local text against what another program reads of the same file."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import subprocess
import tracemalloc
from base64 import b64decode
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compressor.core.errors import UsageError
from compressor.data import files
from compressor.data.sources import source_fingerprint
from tests.unit.data.texts import TEXTS, plain_text, refused, texts_of, write_table

# `printf 'the old river\n' | zstd`, twice, one frame behind the other.
ZSTD_FRAMES = b64decode("KLUv/QRYcQAAdGhlIG9sZCByaXZlcgoU2ZR/") * 2


@pytest.fixture(autouse=True)
def _data_sets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


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

    assert refused(path, "cannot be unpacked").where == str(path)
    path.write_bytes(b"not compressed at all")
    refused(path, "not compressed as its name says")


def test_a_bomb_is_refused_before_it_fills_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_ALWAYS_UNPACKED_BYTES", 1 << 20)
    for name in ("x.txt.gz", "x.jsonl.zst"):
        path = tmp_path / name
        content = b"a" * (1 << 24)
        path.write_bytes(
            gzip.compress(content) if name.endswith("gz") else pa.compress(content, "zstd", asbytes=True)
        )
        refused(path, "far more than a text")


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

    assert str(refused(path).where).startswith(str(path) if line is None else f"{path}:{line}")


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_json_without_a_bottom(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"text": "a"}\n' + '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n")

    assert str(refused(path, "nested too deeply").where).startswith(f"{path}:2")


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    for name in ("x.jsonl", "x.csv"):
        path = tmp_path / name
        path.write_text('text\n"' + "a" * 2000)
        refused(path, r"too long|not JSON")


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

    assert refused(path, message).where == (f"{path}:{line}" if line else str(path))


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


def test_a_small_json_document_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n  {"text": "a"}\n]')
    tracemalloc.start()
    try:
        assert texts_of(path) == ["a"]
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("field", ["_split", "_data_files", "_fingerprint", "_format_type", "_format_kwargs"])
@pytest.mark.parametrize("value", [[None], "x", 3, {"a": []}], ids=str)
def test_an_edited_saved_data_set_is_refused_or_read(field: str, value: object, tmp_path: Path) -> None:
    """Never anything but a UsageError; what `datasets` does not look at may still be read."""
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(folder))
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, field: value}))
    with contextlib.suppress(UsageError):
        assert texts_of(folder) == ["a", "b"]


def test_a_parquet_file_with_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["stone", "river"]}), path, compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"river", b"\xffiver"))
    refused(path, "this Parquet file cannot be read")
