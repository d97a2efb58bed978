"""The rows of tables: JSON lines, JSON, CSV, Parquet and data sets saved by `datasets`, with their places."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from compressor.core.errors import UsageError
from compressor.data.files import MAX_LINE_BYTES, LocalText, TextFile, decoded, open_unpacked, read_lines
from compressor.data.rows import ROW_FIELDS, replace_surrogates, without_nulls

# A JSON document is held in memory as text while its rows are decoded one by one.
MAX_JSON_BYTES = 1 << 30
# Keys under which JSON documents keep their rows.
_LIST_KEYS = ("data", "rows", "train")
_BATCH_ROWS = 1000
_JSON_SPACE = " \t\r\n"


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
        yield Row(where, None) if line.isspace() else _parsed(line, where)


def _json(file: TextFile) -> Iterator[Row]:
    """Lists of rows, objects that hold one, or objects one after the other, by line or not."""
    if _is_json_lines(file.path):
        yield from _json_lines(file)
        return
    with open_unpacked(file.path) as stream:
        content = stream.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise UsageError(
            "this JSON document is too large to be read in one piece",
            where=str(file.path),
            expected=f"at most {MAX_JSON_BYTES:,} bytes",
            hint="write one object per line, in a .jsonl file",
        )
    yield from _document_rows(decoded(content, where=str(file.path)).removeprefix("\ufeff"), file.path)


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
    while (position := _skip(text, position)) < len(text):
        if text[position] == ("]" if in_list else "["):
            in_list, position = not in_list, position + 1
            continue
        line, counted, number = line + text.count("\n", counted, position), position, number + 1
        where = f"{path}:{line}, row {number}"
        try:
            value, end = decoder.raw_decode(text, position)
            value, num_replaced = _repaired(value, text[position:end])
        except RecursionError as error:
            raise _not_json(where, "JSON nested too deeply") from error
        except ValueError as error:
            raise _not_json(f"{path}:{line}", error) from error
        if in_list:
            yield Row(where, value, num_replaced)
            position = _skip(text, end)
            if not text.startswith((",", "]"), position):
                raise _not_json(where, "no ',' or ']' behind it")
            position += text[position] == ","
        else:
            yield from _unfolded(Row(where, value, num_replaced))
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


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _JSON_SPACE:
        position += 1
    return position


def _parsed(line: str, where: str) -> Row:
    try:
        value = json.loads(line)
        value, num_replaced = _repaired(value, line)
    except RecursionError as error:
        raise _not_json(where, "JSON nested too deeply") from error
    except ValueError as error:
        raise _not_json(where, error) from error
    return Row(where, value, num_replaced)


def _repaired(value: Any, source: str) -> tuple[Any, int]:
    """A value without lone surrogates, which only an escape can have put there."""
    return replace_surrogates(value) if "\\ud" in source or "\\uD" in source else (value, 0)


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
                _require_column(names, path)
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
    with _parquet_file(file.path) as table:
        names = table.schema_arrow.names
        _require_column(names, file.path)
        columns = [name for name in ROW_FIELDS if name in names]
        number = 0
        for batch in table.iter_batches(columns=columns, batch_size=_BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield Row(f"{file.path}, row {number}", without_nulls(row))


@contextlib.contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    import pyarrow.parquet
    from pyarrow.lib import ArrowException

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            yield table
    except (ArrowException, OSError) as error:
        raise _unreadable("this Parquet file", path, error) from error


def _saved_rows(folder: Path) -> Iterator[Row]:
    """A data set saved by `datasets`: of several splits `train`."""
    from datasets import DatasetDict, load_from_disk
    from pyarrow.lib import ArrowException

    try:
        data = load_from_disk(str(folder))
    except (ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable("this saved data set", folder, error) from error
    if isinstance(data, DatasetDict):
        if "train" not in data and len(data) != 1:
            raise UsageError(
                "this saved data set has several splits and none is called train",
                where=str(folder),
                found=", ".join(map(str, data)),
                hint="give the directory of one of them",
            )
        data = data["train"] if "train" in data else next(iter(data.values()))
    _require_column(data.column_names, folder)
    columns = [name for name in ROW_FIELDS if name in data.column_names]
    number = 0
    try:
        for batch in data.select_columns(columns).with_format("arrow").iter(batch_size=_BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield Row(f"{folder}, row {number}", without_nulls(row))
    except (ArrowException, OSError) as error:
        raise _unreadable("this saved data set", folder, error) from error


def _not_json(where: str, found: object) -> UsageError:
    return UsageError("this is not JSON", where=where, found=found, hint="correct or remove this row")


def _unreadable(what: str, path: Path, error: Exception) -> UsageError:
    return UsageError(f"{what} cannot be read", where=str(path), found=error, hint="copy or write it again")


def _require_column(names: list[str], path: Path) -> None:
    if not any(name in names for name in ROW_FIELDS):
        raise UsageError(
            "this table holds no text",
            where=str(path),
            expected="a column " + ", ".join(map(repr, ROW_FIELDS[:4])) + ", ...",
            found=", ".join(map(str, names[:20])),
            hint="rename the column that holds the text to text",
        )


_READERS: dict[str, Callable[[TextFile], Iterator[Row]]] = {
    "jsonl": _json_lines,
    "json": _json,
    "csv": _separated,
    "tsv": _separated,
    "parquet": _parquet,
}
