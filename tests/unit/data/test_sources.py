from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.core.console import Console
from compressor.core.errors import NetworkError, UsageError
from compressor.data import checks, hub, sources
from compressor.data.sources import (
    HELD_OUT_FRACTION,
    MAX_LISTED_FILES,
    Documents,
    Position,
    describe_source,
    source_fingerprint,
    survey,
)
from tests.unit.data.texts import plain_text, refused, texts_of, write_packed, write_rows

ROWS = [f"document {number}" for number in range(25)]


def write(path: Path, rows: list[str]) -> Path:
    """A table of texts, and another column."""
    if path.suffix != ".parquet":
        return write_rows(path, *({"text": row, "n": 1} for row in rows))
    texts = pa.array(rows, pa.string())
    pq.write_table(pa.table({"text": texts, "other": texts}), path)
    return path


@given(
    lines=st.lists(st.text(st.characters(exclude_characters="\n\r", codec="utf-8")), min_size=1, max_size=60)
)
def test_text_splits_are_disjoint_and_complete(
    lines: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    whole = "\n".join(lines) + "\n"
    path.write_text(whole, encoding="utf-8", newline="")

    train, held_out = (plain_text(path, split) for split in ("train", "held_out"))

    assert train + held_out == whole == plain_text(path, "all")
    assert train


def test_text_splits_at_a_line_in_the_last_tenth(tiny_text: Path) -> None:
    train, held_out = (plain_text(tiny_text, split) for split in ("train", "held_out"))

    assert train.endswith("\n")
    assert len(held_out) / (len(train) + len(held_out)) == pytest.approx(HELD_OUT_FRACTION, abs=0.01)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_row_splits_are_disjoint_and_complete(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", ROWS)
    train, held_out = (texts_of(path, split) for split in ("train", "held_out"))

    assert train + held_out == ROWS == texts_of(path)
    assert len(held_out) == 2


def test_long_text_comes_in_blocks_of_whole_lines(make_text: object, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("a line of text\n" * 10_000, encoding="utf-8")
    blocks = texts_of(path)

    assert len(blocks) > 1
    assert all(block.text.endswith("\n") for block in blocks)  # type: ignore[union-attr]


def test_a_directory_without_files(tmp_path: Path) -> None:
    (tmp_path / ".hidden").touch()
    refused(tmp_path, "holds no text")


@pytest.mark.parametrize("name", ["none.txt", "none.jsonl", "none.parquet", "none.csv.gz", "none"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    refused(tmp_path / name, "does not exist")


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.parquet", "no-rows.parquet"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(path, []) if name == "no-rows.parquet" else path.touch()

    refused(path, "empty")
    with pytest.raises(UsageError, match="empty"):
        source_fingerprint(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"\xff\xfe\xff", "not UTF-8"),
        ("x.jsonl", b'{"text": "\xff"}\n', "not UTF-8"),
        ("x.jsonl", b'{"text": "a"}\n{"text"\n', "not JSON"),
        ("x.jsonl", b'{"body": "a"}\n', "no 'text' string"),
        ("x.jsonl", b'["a"]\n', "no 'text' string"),
        ("x.parquet", b"PAR1 but not really", "cannot be read"),
    ],
)
def test_malformed_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    refused(path, message)


def test_parquet_without_a_known_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "x.parquet")

    refused(tmp_path / "x.parquet", "holds no text")


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    path, found = tmp_path / "x.txt", set()
    for text in ("one", "another"):
        path.write_text(text)
        found.add(source_fingerprint(str(path)))

    assert len(found) == 2


def test_a_table_is_identified_by_its_documents(tmp_path: Path) -> None:
    """What changes no document changes no fingerprint: a repaired text leaves what was trained usable."""
    rows = [json.dumps({"text": text}) for text in ("one", "two", "three")]

    def fingerprint(name: str, content: str) -> str:
        return source_fingerprint(str(write_packed(tmp_path / name, content)))

    first = fingerprint("a.jsonl", "\n".join(rows) + "\n")
    assert fingerprint("blank.jsonl", "\n\n".join(rows) + "\n\n") == first
    assert fingerprint("b.jsonl.gz", "\n".join(rows)) == first
    assert fingerprint("c.json", json.dumps([{"text": "one", "id": 1}, *map(json.loads, rows[1:])])) == first
    assert fingerprint("d.csv", "text,id\none,1\ntwo,2\nthree,3\n") == first

    others = [
        fingerprint("order.jsonl", "\n".join(reversed(rows))),
        fingerprint("fewer.jsonl", "\n".join(rows[:2])),
        fingerprint("joined.jsonl", json.dumps({"text": "onetwo"}) + "\n" + rows[2]),
        fingerprint("changed.jsonl", "\n".join([*rows[:2], json.dumps({"text": "four"})])),
    ]
    assert len({first, *others}) == len(others) + 1


def test_hub_data_set_without_network() -> None:
    with pytest.raises(NetworkError, match="revision"):
        source_fingerprint("someone/some-text")


@pytest.mark.parametrize("bad", [0, 10, 24])
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_a_broken_row_is_found_before_the_first_document_of_either_part(
    tmp_path: Path, split: Any, bad: int
) -> None:
    path = tmp_path / "x.jsonl"
    rows = [json.dumps({"text": row}) for row in ROWS]
    path.write_text("\n".join([*rows[:bad], "not JSON", *rows[bad:]]) + "\n\n")

    with pytest.raises(UsageError, match="not JSON") as caught:
        Documents(str(path), split)
    assert caught.value.where == f"{path}:{bad + 1}"


def test_blank_lines_and_empty_rows_are_no_documents(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    rows = [json.dumps({"text": row}) for row in ROWS]
    path.write_text("\n\n".join([json.dumps({"text": ""}), *rows]) + "\n\n  \n")

    assert texts_of(path) == ROWS
    assert texts_of(path, "held_out") == ROWS[-2:]
    assert survey(str(path)).num_empty == 1 + len(ROWS) + 2


def test_what_a_source_is_described_by(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02}.jsonl").write_text(json.dumps({"text": f"{number}"}) + "\n")
    found = describe_source(str(tmp_path))
    first = tmp_path / "00.jsonl"

    assert found["files"][0] == {
        "name": "00.jsonl",
        "bytes": first.stat().st_size,
        "sha256": hashlib.sha256(first.read_bytes()).hexdigest(),
    }
    assert [len(found["files"]), found["num_files"], found["documents_in_all"]] == [MAX_LISTED_FILES, 30, 30]
    assert str(tmp_path) not in json.dumps(found)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".txt"])
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_documents_are_taken_up_behind_a_position(tmp_path: Path, suffix: str, split: Any) -> None:
    path = tmp_path / f"rows{suffix}"
    if suffix == ".txt":
        path.write_text("a line of text\n" * 60_000, encoding="utf-8")
    else:
        write(path, ROWS)
    whole = texts_of(path, split)
    first = Documents(str(path), split)
    taken = list(itertools.islice(first, 2))
    rest = list(Documents(str(path), split, position=first.position()))

    assert taken + rest == whole
    assert len(taken) == 2


@pytest.fixture(params=["json", "parquet"])
def local_hub(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set of 30 documents in three files, streamed by `datasets` without a network."""
    suffix = {"json": ".jsonl", "parquet": ".parquet"}[request.param]
    files = [
        str(write(tmp_path / f"part-{part}{suffix}", [f"{part}-{row}" for row in range(10)]))
        for part in range(3)
    ]
    load = datasets.load_dataset

    def load_local(name: str, config: str | None, *, streaming: bool, revision: str) -> Any:
        assert [name, config, streaming, revision] == ["someone/text", "small", True, "r1"]
        return load(request.param, data_files=files, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", load_local)
    monkeypatch.setattr(hub, "hub_revision", lambda _spec: "r1")
    monkeypatch.setattr(sources, "HELD_OUT_HUB_DOCUMENTS", 4)
    return "someone/text:small"


def test_hub_documents_split_at_the_first_ones(local_hub: str) -> None:
    everything = [f"{part}-{row}" for part in range(3) for row in range(10)]

    assert texts_of(local_hub, "held_out") == everything[:4]
    assert texts_of(local_hub, "train") == everything[4:]
    assert texts_of(local_hub) == everything


def read_back(position: Position) -> Position:
    return Position(**json.loads(json.dumps(asdict(position))))


@pytest.mark.parametrize("num_taken", [1, 6, 13, 26])
def test_hub_documents_are_taken_up_behind_a_position(local_hub: str, num_taken: int) -> None:
    first = Documents(local_hub, "train")
    taken = list(itertools.islice(first, num_taken))
    position = read_back(first.position())
    resumed = Documents(local_hub, "train", position=position)
    between = list(itertools.islice(resumed, 2))
    rest = list(Documents(local_hub, "train", position=read_back(resumed.position())))

    assert taken + between + rest == texts_of(local_hub, "train")


@pytest.fixture
def splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A directory that `datasets` reads as it reads one of the hub."""
    for split in ("train", "validation", "test"):
        (tmp_path / "small").mkdir(exist_ok=True)
        write(tmp_path / "small" / f"{split}.parquet", [f"{split} {row}" for row in range(3)])
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files:\n"
        "  - split: train\n    path: small/train*\n  - split: test\n    path: small/test*\n"
        "- config_name: unusual\n  data_files:\n  - split: probe\n    path: small/validation*\n---\n"
    )
    monkeypatch.setattr(hub, "hub_revision", lambda _spec: "r1")
    monkeypatch.setattr(sources, "hub_revision", lambda _spec: "r1")
    monkeypatch.setattr(sources, "is_local", lambda _spec: False)
    monkeypatch.setattr(checks, "is_local", lambda _spec: False)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("small", "train"),
        ("small:", "train"),
        ("small:train", "train"),
        ("small:test", "test"),
        ("unusual:probe", "validation"),
    ],
)
def test_a_split_of_a_hub_data_set_by_name(splits: str, name: str, split: str) -> None:
    checks.check_texts([f"{splits}:{name}"], Console())
    assert texts_of(f"{splits}:{name}") == [f"{split} {row}" for row in range(3)]


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("small:dev", "train, test"),
        ("unusual", "probe"),
        ("unusual:train", "probe"),
        ("small:Test", "train, test"),
    ],
)
def test_a_split_that_is_not_there_names_those_that_are(splits: str, name: str, there: str) -> None:
    with pytest.raises(UsageError, match="no such split") as caught:
        checks.check_texts([f"{splits}:{name}"], Console())
    assert caught.value.where == f"{splits}:{name}"
    assert caught.value.expected == there
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["large", "large:train", ":train"])
def test_a_configuration_that_is_not_there_or_not_named(splits: str, name: str) -> None:
    with pytest.raises(UsageError, match="under this name") as caught:
        checks.check_texts([f"{splits}:{name}"], Console())
    assert "small" in str(caught.value.found)


def test_one_part_of_a_data_set_has_one_fingerprint(splits: str) -> None:
    """Else a model would be measured on what it was trained on, under another name."""

    def fingerprint(*names: str) -> set[str]:
        return {source_fingerprint(":".join(["someone/text", *names])) for names in map(str.split, names)}

    assert fingerprint("small", "small train") == {"someone/text:small@r1"}
    assert (
        source_fingerprint("someone/text::train") == source_fingerprint("someone/text") == "someone/text@r1"
    )
    assert source_fingerprint("someone/text:train") == "someone/text:train@r1"  # a configuration of that name
    assert len(fingerprint("small", "small test", "large", "large test")) == 4
    with pytest.raises(UsageError, match="neither a file nor"):
        source_fingerprint("someone/text:small:test:more")


def test_a_text_and_the_fields_beside_it_are_one_content(tmp_path: Path) -> None:
    """The fields are read where only responses count, so that another answer is another text."""

    def fingerprint(name: str, **row: Any) -> str:
        return source_fingerprint(str(write_rows(tmp_path / f"{name}.jsonl", row)))

    plain = fingerprint("plain", text="a")
    assert fingerprint("columns", text="a", id=3, output="", input=None) == plain
    first = fingerprint("first", text="a", instruction="do", output="done")
    assert fingerprint("order", output="done", instruction="do", text="a") == first
    assert len({plain, first, fingerprint("other", text="a", instruction="do", output="not done")}) == 3
