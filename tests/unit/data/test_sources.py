from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.data import hub, sources
from compressor.data.sources import HELD_OUT_FRACTION, Documents, documents, source_fingerprint
from compressor.errors import NetworkError, UsageError

ROWS = [f"document {number}" for number in range(25)]


def write_rows(path: Path, rows: list[str]) -> Path:
    if path.suffix == ".parquet":
        texts = pa.array(rows, pa.string())
        pq.write_table(pa.table({"text": texts, "other": texts}), path)
    else:
        path.write_text("".join(json.dumps({"text": row, "n": 1}) + "\n" for row in rows), encoding="utf-8")
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

    train, held_out = ("".join(documents(str(path), split)) for split in ("train", "held_out"))

    assert train + held_out == whole == "".join(documents(str(path), "all"))
    assert train


def test_text_splits_at_a_line_in_the_last_tenth(tiny_text: Path) -> None:
    train, held_out = ("".join(documents(str(tiny_text), split)) for split in ("train", "held_out"))

    assert train.endswith("\n")
    assert len(held_out) / (len(train) + len(held_out)) == pytest.approx(HELD_OUT_FRACTION, abs=0.01)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_row_splits_are_disjoint_and_complete(tmp_path: Path, suffix: str) -> None:
    path = write_rows(tmp_path / f"rows{suffix}", ROWS)

    train, held_out = (list(documents(str(path), split)) for split in ("train", "held_out"))

    assert train + held_out == ROWS == list(documents(str(path), "all"))
    assert len(held_out) == 2


def test_long_text_comes_in_blocks_of_whole_lines(make_text: object, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("a line of text\n" * 10_000, encoding="utf-8")
    blocks = list(documents(str(path), "all"))

    assert len(blocks) > 1
    assert all(block.endswith("\n") for block in blocks)


@pytest.mark.parametrize("name", ["none.txt", "none.jsonl", "none.parquet", "./none"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    if name == "./none":
        (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="does not exist"):
        list(documents(str(tmp_path / name), "train"))


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_empty_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"empty{suffix}"
    path.touch()

    with pytest.raises(UsageError, match="empty"):
        list(documents(str(path), "train"))
    with pytest.raises(UsageError, match="empty"):
        source_fingerprint(str(path))


def test_table_without_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.parquet", [])

    with pytest.raises(UsageError, match="empty"):
        list(documents(str(path), "train"))


def test_unknown_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "text.csv").write_text("a,b\n")

    with pytest.raises(UsageError, match="kind of text"):
        list(documents(str(tmp_path / "text.csv"), "train"))


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

    with pytest.raises(UsageError, match=message):
        list(documents(str(path), "all"))


def test_parquet_without_a_known_column(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"body": ["a"]}), path)

    with pytest.raises(UsageError, match="holds no text"):
        list(documents(str(path), "all"))


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("one")
    first = source_fingerprint(str(path))
    path.write_text("another")

    assert source_fingerprint(str(path)) != first


def test_hub_data_set_without_network() -> None:
    with pytest.raises(NetworkError, match="revision"):
        source_fingerprint("someone/some-text")


def test_only_the_rows_asked_for_are_read(tmp_path: Path) -> None:
    """Rows come one by one, and the held-out tail is not parsed for the others' sake."""
    path = tmp_path / "x.jsonl"
    rows = [json.dumps({"text": row}) for row in ROWS]
    path.write_text("\n".join([*rows[:10], "not JSON", *rows[10:]]) + "\n")

    assert list(itertools.islice(documents(str(path), "train"), 10)) == ROWS[:10]
    with pytest.raises(UsageError, match="not JSON") as caught:
        list(documents(str(path), "train"))
    assert str(caught.value.where).endswith(":11")
    assert list(documents(str(path), "held_out")) == ROWS[-3:]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".txt"])
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_documents_are_taken_up_behind_a_position(tmp_path: Path, suffix: str, split: Any) -> None:
    path = tmp_path / f"rows{suffix}"
    if suffix == ".txt":
        path.write_text("a line of text\n" * 60_000, encoding="utf-8")
    else:
        write_rows(path, ROWS)
    whole = list(documents(str(path), split))
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
        str(write_rows(tmp_path / f"part-{part}{suffix}", [f"{part}-{row}" for row in range(10)]))
        for part in range(3)
    ]
    load = datasets.load_dataset

    def load_local(name: str, config: str | None, *, split: str, streaming: bool, revision: str) -> Any:
        assert [name, config, split, streaming, revision] == ["someone/text", "small", "train", True, "r1"]
        return load(request.param, data_files=files, split=split, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", load_local)
    monkeypatch.setattr(hub, "hub_revision", lambda _spec: "r1")
    monkeypatch.setattr(sources, "HELD_OUT_HUB_DOCUMENTS", 4)
    return "someone/text:small"


def test_hub_documents_split_at_the_first_ones(local_hub: str) -> None:
    everything = [f"{part}-{row}" for part in range(3) for row in range(10)]

    assert list(documents(local_hub, "held_out")) == everything[:4]
    assert list(documents(local_hub, "train")) == everything[4:]
    assert list(documents(local_hub, "all")) == everything


@pytest.mark.parametrize("num_taken", [1, 6, 13, 26])
def test_hub_documents_are_taken_up_behind_a_position(local_hub: str, num_taken: int) -> None:
    first = Documents(local_hub, "train")
    taken = list(itertools.islice(first, num_taken))
    position = json.loads(json.dumps(first.position()))
    resumed = Documents(local_hub, "train", position=position)
    between = list(itertools.islice(resumed, 2))
    rest = list(Documents(local_hub, "train", position=json.loads(json.dumps(resumed.position()))))

    assert taken + between + rest == list(documents(local_hub, "train"))
