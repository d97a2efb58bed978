"""The rows of tables: JSON lines, JSON, CSV, Parquet and data sets saved by `datasets`, with their places."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from compressor.core.errors import UsageError
from compressor.data.content import behind_space
from compressor.data.files import MAX_LINE_BYTES, LocalText, TextFile, decoded, open_unpacked, read_lines
from compressor.data.messages import CORRECT
from compressor.data.rows import ROW_FIELDS, replace_surrogates, without_nulls

# A JSON document is held in memory as text while its rows are decoded one by one.
MAX_JSON_BYTES = 1 << 30
# Keys under which JSON documents keep their rows.
_LIST_KEYS = ("data", "rows", "train")
_BATCH_ROWS = 1000
_PIECE_BYTES = 1 << 20
# What `datasets` raises where the files of a saved data set are not as it wrote them.
_NOT_AS_SAVED = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
)


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        where: File and line; of formats without lines, the row's number from 1.
        value: What stands there; None for a blank line.
        num_replaced: Surrogates without a partner that were replaced by U+FFFD.
    """

    where: str
    value: Any
    num_replaced: int = 0


def read_rows(text: LocalText) -> Iterator[Row]:
    """All rows of a text's files, in order.

    Raises:
        UsageError: for content that cannot be read, with its place.
    """
    if text.folder is not None:
        yield from _saved_rows(text.folder)
        return
    for file in text.files:
        yield from _READERS[file.kind](file)


def _json_lines(file: TextFile) -> Iterator[Row]:
    for number, line in read_lines(file.path):
        where = f"{file.path}:{number}"
        with _json_at(where, where):
            row = Row(where, None) if line.isspace() else _repaired(where, json.loads(line), line)
        yield row


def _json(file: TextFile) -> Iterator[Row]:
    """Lists of rows, objects that hold one, or objects one after the other, by line or not."""
    if _is_json_lines(file.path):
        yield from _json_lines(file)
        return
    with open_unpacked(file.path) as stream:
        content = _up_to(stream, MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise UsageError(
            "this JSON document is too large to be read in one piece",
            where=str(file.path),
            expected=f"at most {MAX_JSON_BYTES:,} bytes",
            hint="write one object per line, in a .jsonl file",
        )
    yield from _document_rows(decoded(content, where=str(file.path)).removeprefix("\ufeff"), file.path)


def _up_to(stream: BinaryIO, num_bytes: int) -> bytes:
    """The first bytes of a stream, in pieces: asked for at once, their memory is taken at once too."""
    parts = []
    while num_bytes > 0 and (part := stream.read(min(num_bytes, _PIECE_BYTES))):
        parts.append(part)
        num_bytes -= len(part)
    return b"".join(parts)


def _is_json_lines(path: Path) -> bool:
    """Whether the first line is an object of its own, and more than an envelope of rows."""
    lines = (line for _, line in read_lines(path) if not line.isspace())
    first = next(lines, "")
    if not first.lstrip().startswith("{"):
        return False
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return next(lines, None) is not None or not any(isinstance(value.get(key), list) for key in _LIST_KEYS)


def _document_rows(text: str, path: Path) -> Iterator[Row]:
    """The items of lists, and the values that stand outside of them, one after the other."""
    decoder = json.JSONDecoder()
    in_list, position = False, 0
    line, counted, number = 1, 0, 0
    while (position := behind_space(text, position)) < len(text):
        if text[position] == ("]" if in_list else "["):
            in_list, position = not in_list, position + 1
            continue
        line, counted, number = line + text.count("\n", counted, position), position, number + 1
        where = f"{path}:{line}, row {number}"
        with _json_at(where, f"{path}:{line}"):
            value, end = decoder.raw_decode(text, position)
            row = _repaired(where, value, text[position:end])
        if in_list:
            yield row
            position = behind_space(text, end)
            if not text.startswith((",", "]"), position):
                raise _not_json(where, "no ',' or ']' behind it")
            position += text[position] == ","
        else:
            yield from _unfolded(row)
            position = end
    if in_list:
        raise _not_json(str(path), "the file ends before the list does")


def _unfolded(row: Row) -> Iterator[Row]:
    """The rows that an object holds under one of the usual keys; else the object as a row of its own."""
    value = row.value
    key = next(
        (key for key in _LIST_KEYS if isinstance(value, dict) and isinstance(value.get(key), list)), None
    )
    if key is None or any(name in value for name in ROW_FIELDS):
        yield row
        return
    for number, inner in enumerate(value[key]):
        yield Row(f"{row.where}, {key}[{number}]", inner, 0 if number else row.num_replaced)


@contextlib.contextmanager
def _json_at(where: str, line: str) -> Iterator[None]:
    """Name the place of what is not JSON."""
    try:
        yield
    except RecursionError as error:
        raise _not_json(where, "JSON nested too deeply") from error
    except ValueError as error:
        raise _not_json(line, error) from error


def _repaired(where: str, value: Any, source: str) -> Row:
    """A row without lone surrogates, which only an escape can have put there."""
    has_escapes = "\\ud" in source or "\\uD" in source
    return Row(where, *(replace_surrogates(value) if has_escapes else (value, 0)))


def _separated(file: TextFile) -> Iterator[Row]:
    """CSV as in RFC 4180, its first line the names of the columns."""
    csv.field_size_limit(MAX_LINE_BYTES)  # of the whole process: it only ever rises
    path = file.path
    reader = csv.reader(
        (line for _, line in read_lines(path)), delimiter="\t" if file.kind == "tsv" else ",", strict=True
    )
    names: list[str] | None = None
    first_line = 1
    try:
        for fields in reader:
            where, first_line = f"{path}:{first_line}", reader.line_num + 1
            if names is None:
                names = fields
                _columns(names, path)
            elif fields and len(fields) != len(names):
                raise UsageError(
                    "a row has another number of fields than the first line",
                    where=where,
                    expected=len(names),
                    found=len(fields),
                    hint="put fields that hold separators or line breaks in double quotes",
                )
            else:
                yield Row(where, dict(zip(names, fields, strict=True)) if fields else None)
    except csv.Error as error:
        raise UsageError(
            "a row is not CSV",
            where=f"{path}:{first_line}",
            found=error,
            hint="correct the row: quotes inside a quoted field are doubled",
        ) from error


def _parquet(file: TextFile) -> Iterator[Row]:
    import pyarrow.parquet

    # A ValueError: text of a column that is not UTF-8, which is found out when it is taken.
    errors = _arrow_errors("this Parquet file", file.path, ValueError)
    with errors, pyarrow.parquet.ParquetFile(file.path) as table:
        columns = _columns(table.schema_arrow.names, file.path)
        yield from _arrow_rows(table.iter_batches(columns=columns, batch_size=_BATCH_ROWS), file.path)


def _saved_rows(folder: Path) -> Iterator[Row]:
    """A data set saved by `datasets`: of several splits `train`."""
    from datasets import DatasetDict, load_from_disk

    what = "this saved data set"
    with _arrow_errors(what, folder, *_NOT_AS_SAVED):
        data = load_from_disk(str(folder))
    if isinstance(data, DatasetDict):
        if "train" not in data and len(data) != 1:
            raise UsageError(
                "this saved data set has several splits and none is called train",
                where=str(folder),
                found=", ".join(map(str, data)),
                hint="give the directory of one of them",
            )
        data = data["train"] if "train" in data else next(iter(data.values()))
    columns = _columns(data.column_names, folder)
    with _arrow_errors(what, folder, *_NOT_AS_SAVED):
        batches = data.select_columns(columns).with_format("arrow").iter(batch_size=_BATCH_ROWS)
        yield from _arrow_rows(batches, folder)


def _arrow_rows(batches: Iterable[Any], path: Path) -> Iterator[Row]:
    rows = (row for batch in batches for row in batch.to_pylist())
    for number, row in enumerate(rows, 1):
        yield Row(f"{path}, row {number}", without_nulls(row))


@contextlib.contextmanager
def _arrow_errors(what: str, path: Path, *more: type[Exception]) -> Iterator[None]:
    from pyarrow.lib import ArrowException

    try:
        yield
    except (ArrowException, OSError, *more) as error:
        raise UsageError(
            f"{what} cannot be read", where=str(path), found=error, hint="replace the file, or write it again"
        ) from error


def _not_json(where: str, found: object) -> UsageError:
    return UsageError("this is not JSON", where=where, found=found, hint=CORRECT)


def _columns(names: list[str], path: Path) -> list[str]:
    """The columns that are read of a table, at least one."""
    columns = [name for name in ROW_FIELDS if name in names]
    if not columns:
        raise UsageError(
            "this table holds no text",
            where=str(path),
            expected="a column " + ", ".join(map(repr, ROW_FIELDS[:4])) + ", ...",
            found=", ".join(map(str, names[:20])),
            hint="rename the column that holds the text to text",
        )
    return columns


_READERS: dict[str, Callable[[TextFile], Iterator[Row]]] = {
    "jsonl": _json_lines,
    "json": _json,
    "csv": _separated,
    "tsv": _separated,
    "parquet": _parquet,
}
