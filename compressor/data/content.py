"""What a file's first bytes say: that it is binary, or holds rows although its name says plain text."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path

from compressor.core.errors import UsageError
from compressor.data.rows import LEADING_FIELDS

# First bytes of binary files, and what to call them.
_BINARY_KINDS = (
    (b"PAR1", "a Parquet file without its suffix"),
    (b"PK\x03\x04", "a zip archive (.zip, .docx, .xlsx, ...)"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"%PDF", "a PDF document"),
    (b"GGUF", "a GGUF model"),
    (b"ARROW1", "an Arrow file"),
    (b"\x7fELF", "a program"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"SQLite format 3", "a data base"),
)
_MANY_BYTES = 256
# So much of a file that begins like JSON is decoded to see whether it holds rows.
SNIFFED_BYTES = 1 << 24
_TELLING_ROWS = 2
_SPACE = re.compile(r"[ \t\r\n]*")
_COLUMN = re.compile(r"\w*")


def refuse_binary(path: Path, head: bytes) -> None:
    """Refuse a file whose first bytes show that it is binary.

    Raises:
        UsageError: naming what it is.
    """
    found = next((name for magic, name in _BINARY_KINDS if head.startswith(magic)), None)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UsageError(
            "this text is not UTF-8",
            where=str(path),
            found="UTF-16",
            hint="convert it with iconv -f utf-16 -t utf-8",
        )
    if found is None and b"\0" in head:
        # Text may hold a NUL. A file that is full of them, or not UTF-8 either, is binary.
        is_full = len(head) >= _MANY_BYTES and head.count(0) > len(head) // 3
        try:
            codecs.getincrementaldecoder("utf-8")().decode(head)
        except UnicodeDecodeError:
            is_full = True
        found = "binary content" if is_full else None
    if found is not None:
        raise UsageError(
            "this file is not text",
            where=str(path),
            expected="plain text, JSON, CSV or Parquet",
            found=found,
            hint="convert it to one of these, or leave it out of the directory or pattern",
        )


def begins_like_json(content: bytes) -> bool:
    """Whether text begins with an object, or a list of them."""
    return content.removeprefix(codecs.BOM_UTF8).lstrip().removeprefix(b"[").lstrip().startswith(b"{")


def holds_json_rows(content: bytes) -> bool:
    """Whether text begins with two objects that are rows, of a list or not, or is a single one.

    Text in which prose follows an object does not count, such as a page about JSON.
    """
    text = content.decode("utf-8", errors="ignore").removeprefix("\ufeff")
    decoder, position, num_rows = json.JSONDecoder(), behind_space(text, 0), 0
    is_list = text.startswith("[", position)
    position = behind_space(text, position + is_list)
    while num_rows < _TELLING_ROWS and position < len(text):
        if is_list and text[position] == "]":
            return num_rows > 0 and not text[position + 1 :].strip()
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            return False
        if not (isinstance(value, dict) and any(name in value for name in LEADING_FIELDS)):
            return False
        num_rows += 1
        position = behind_space(text, position)
        if is_list and text.startswith(",", position):
            position = behind_space(text, position + 1)
    return num_rows > 0


def refuse_csv(path: Path, head: bytes) -> None:
    """Refuse plain text whose first line is that of a table with a column that would be read.

    Raises:
        UsageError: naming the suffix that reads it as a table.
    """
    first, _, rest = head.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="ignore").partition("\n")
    for suffix, mark in ((".csv", ","), (".tsv", "\t")):
        names = [name.strip('"') for name in first.rstrip("\r").split(mark)]
        is_header = len(names) > 1 and all(_COLUMN.fullmatch(name) for name in names)
        if is_header and rest.strip() and any(name in LEADING_FIELDS for name in names):
            raise UsageError(
                "this plain text begins like a table",
                where=str(path),
                expected=f"a name that ends with {suffix}",
                found=f"the first line {first.strip()[:80]!r}",
                hint="rename the file if it is a table; if it is plain text, put another line first",
            )


def behind_space(text: str, position: int) -> int:
    """The first position from this one on that holds something else than JSON's white space."""
    found = _SPACE.match(text, position)
    return position if found is None else found.end()
