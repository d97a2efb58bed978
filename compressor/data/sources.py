"""Text by name: a hub data set, or a .txt, .jsonl or .parquet file; and its split into used and held out.

Training and calibration read the `train` part of a source, evaluation the `held_out` part, so a
model is never measured on what set it. A file's held-out part is its tail, the last tenth. A hub
stream has no tail within reach, so its first documents are held out.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from compressor.artifact import sha256_of_file
from compressor.data.conversations import MESSAGES_FIELD, TEXT_FIELD, Document, document_of
from compressor.data.hub import hub_revision, open_hub_data_set
from compressor.errors import NetworkError, UsageError

Split = Literal["train", "held_out", "all"]
Position = dict[str, Any]

HELD_OUT_FRACTION = 0.1
HELD_OUT_HUB_DOCUMENTS = 1000
_TEXT_BLOCK_CHARACTERS = 20_000
_FILE_KINDS = (".txt", ".jsonl", ".parquet")


def is_local(spec: str) -> bool:
    """Whether a SOURCE names a file rather than a hub data set."""
    return Path(spec).suffix in _FILE_KINDS or Path(spec).exists()


def source_fingerprint(spec: str) -> str:
    """What identifies a source's content: a file's sha256, or a hub data set's revision.

    Raises:
        UsageError: for a missing or empty file, or one of another kind.
        NetworkError: when the hub cannot be asked.
    """
    if is_local(spec):
        path = _checked_file(spec)
        return f"sha256:{_cached_sha256(str(path), path.stat().st_mtime_ns, path.stat().st_size)}"
    return f"{spec}@{hub_revision(spec)}"


class Documents:
    """A source's documents in order, and the position from which they can be taken up again."""

    def __init__(self, spec: str, split: Split, *, position: Position | None = None) -> None:
        """Open a source.

        Args:
            spec: SOURCE as given on the command line; `ID:CONFIG` names a hub data set's configuration.
            split: Which part.
            position: Where to continue: what `position` returned when the last document was taken.

        Raises:
            UsageError: for a file that is missing, empty or malformed, here or on reading.
            NetworkError: when the hub cannot be reached.
        """
        self._num_taken = int(position["documents"]) if position else 0
        if is_local(spec):
            self._hub = None
            self._rows = _local_documents(_checked_file(spec), split, self._num_taken)
        else:
            self._hub = open_hub_data_set(spec, _hub_bounds(split), position["stream"] if position else None)
            self._rows = _hub_documents(self._hub, spec, self._num_taken)

    def __iter__(self) -> Iterator[Document]:
        for document in self._rows:
            self._num_taken += 1
            yield document

    def position(self) -> Position:
        """Behind the last document taken, as plain JSON values."""
        if self._hub is None:
            return {"documents": self._num_taken}
        return {"documents": self._num_taken, "stream": self._hub.state_dict()}


def documents(spec: str, split: Split) -> Iterator[Document]:
    """Stream a source's documents from the first; see `Documents`."""
    yield from Documents(spec, split)


def _local_documents(path: Path, split: Split, num_skipped: int) -> Iterator[Document]:
    if path.suffix == ".txt":
        yield from itertools.islice(_text_blocks(path, split), num_skipped, None)
        return
    num_rows = _num_rows(path)
    if num_rows == 0:
        raise UsageError("this text is empty", where=str(path), found="no rows")
    first_held_out = num_rows - max(1, round(num_rows * HELD_OUT_FRACTION))
    bounds = {"train": (0, first_held_out), "held_out": (first_held_out, num_rows), "all": (0, num_rows)}
    first, end = bounds[split]
    read = _jsonl_rows if path.suffix == ".jsonl" else _parquet_rows
    for number, row in read(path, first + num_skipped, end):
        yield document_of(row, where=f"{path}:{number}")


def _checked_file(spec: str) -> Path:
    path = Path(spec).expanduser()
    if not path.is_file():
        raise UsageError("this text does not exist", where=spec)
    if path.suffix not in _FILE_KINDS:
        raise UsageError("this kind of text is not read", where=spec, expected=" or ".join(_FILE_KINDS))
    if path.stat().st_size == 0:
        raise UsageError("this text is empty", where=spec)
    return path


@functools.lru_cache
def _cached_sha256(path: str, _mtime_ns: int, _size: int) -> str:
    return sha256_of_file(Path(path))


def _text_blocks(path: Path, split: Split) -> Iterator[str]:
    """A text file in blocks of whole lines; their concatenation is the split's text."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError("this text is not UTF-8", where=str(path), found=error) from error
    cut = text.find("\n", round(len(text) * (1 - HELD_OUT_FRACTION))) + 1
    parts = {"train": text[:cut] if cut else text, "held_out": text[cut:] if cut else "", "all": text}
    block: list[str] = []
    size = 0
    for line in parts[split].splitlines(keepends=True):
        block.append(line)
        size += len(line)
        if size >= _TEXT_BLOCK_CHARACTERS:
            yield "".join(block)
            block, size = [], 0
    if block:
        yield "".join(block)


def _num_rows(path: Path) -> int:
    return _cached_num_rows(str(path), path.stat().st_mtime_ns, path.stat().st_size)


@functools.lru_cache
def _cached_num_rows(path: str, _mtime_ns: int, _size: int) -> int:
    if path.endswith(".jsonl"):
        with Path(path).open("rb") as file:
            return sum(1 for _ in file)
    with _parquet_file(Path(path)) as table:
        return int(table.metadata.num_rows)


def _jsonl_rows(path: Path, first: int, end: int) -> Iterator[tuple[int, Any]]:
    """Rows `first` up to `end` with their line numbers; lines before them are not parsed."""
    with path.open("rb") as file:
        for number, line in itertools.islice(enumerate(file, 1), first, end):
            try:
                yield number, json.loads(line)
            except UnicodeDecodeError as error:
                raise UsageError("this text is not UTF-8", where=f"{path}:{number}", found=error) from error
            except ValueError as error:
                raise UsageError("a line is not JSON", where=f"{path}:{number}", found=error) from error


def _parquet_rows(path: Path, first: int, end: int) -> Iterator[tuple[int, Any]]:
    with _parquet_file(path) as table:
        columns = [name for name in (TEXT_FIELD, MESSAGES_FIELD) if name in table.schema_arrow.names]
        if not columns:
            raise UsageError(
                "this Parquet file holds no text",
                where=str(path),
                expected=f"a column {TEXT_FIELD!r} or {MESSAGES_FIELD!r}",
                found=", ".join(table.schema_arrow.names),
            )
        batches = table.iter_batches(columns=columns)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from itertools.islice(enumerate(rows, 1), first, end)


@contextlib.contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    import pyarrow.parquet
    from pyarrow.lib import ArrowException

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            yield table
    except (ArrowException, OSError) as error:
        raise UsageError("this Parquet file cannot be read", where=str(path), found=error) from error


def _hub_bounds(split: Split) -> tuple[int, int | None]:
    bounds: dict[str, tuple[int, int | None]] = {
        "train": (HELD_OUT_HUB_DOCUMENTS, None),
        "held_out": (0, HELD_OUT_HUB_DOCUMENTS),
        "all": (0, None),
    }
    return bounds[split]


def _hub_documents(stream: Any, spec: str, num_skipped: int) -> Iterator[Document]:
    try:
        for number, row in enumerate(stream, num_skipped + 1):
            yield document_of(row, where=f"{spec}:{number}")
    except (OSError, ValueError) as error:
        raise NetworkError("the data set cannot be streamed", where=spec, found=error) from error
