"""JSON that someone else wrote: one error of ours for whatever is wrong with the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from compressor.core.errors import UsageError, VerificationError
from compressor.core.json_files import MAX_BYTES, read_json, read_json_mapping


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff\xfe",
        b'{"a": NaN}',
        b"[-Infinity]",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"layers": ' + b"9" * 10_000 + b"}",
    ],
)
def test_broken_content_is_one_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="the config cannot be read") as caught:
        read_json(file, what="the config", error=UsageError)
    assert str(file) in str(caught.value)


def test_special_files_are_not_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.json"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, Path("/dev/zero")):
        with pytest.raises(VerificationError, match="cannot be read") as caught:
            read_json(path, what="the config")
        assert "regular file" in str(caught.value)


def test_a_gigantic_file_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with file.open("wb") as opened:
        opened.truncate(MAX_BYTES + 1)  # sparse: takes no disk
    with pytest.raises(VerificationError, match="bytes"):
        read_json(file, what="the config")


@pytest.mark.parametrize("content", ["[]", "3", '"text"', "null"])
def test_a_mapping_is_demanded(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(content)
    with pytest.raises(VerificationError, match="not a JSON object"):
        read_json_mapping(file, what="the config")


def test_infinity_is_read_where_it_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer_config.json"
    file.write_text('{"model_max_length": Infinity}')
    assert read_json(file, what="the tokenizer's config", finite=False) == {"model_max_length": float("inf")}
