"""The files behind a local text: found, told apart by their content, unpacked and cut into bounded lines.

A local text is a file, a directory (all files below it, hidden ones excepted), a glob, or the folder that
`datasets` leaves with `save_to_disk`. Files come in the order of their names. Compression is recognised by
a file's first bytes; gzip and zstd are read as streams. A file whose name is not that of a table is plain
text, unless it holds rows of JSON.
"""

from __future__ import annotations

import functools
import glob
import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from compressor.core.errors import UsageError
from compressor.data.content import (
    SNIFFED_BYTES,
    begins_like_json,
    holds_json_rows,
    refuse_binary,
    refuse_csv,
)
from compressor.data.selection import (
    LOCAL_SUFFIXES,
    PACKED_SUFFIXES,
    Kind,
    cards_among,
    kind_of_name,
    other_splits_among,
)
from compressor.runs.artifact import sha256_of_file

_GLOB_CHARACTERS = frozenset("*?[")
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_HEAD_BYTES = 4096
BOM = b"\xef\xbb\xbf"
# A line longer than this is a mistake, or an attack on the memory.
MAX_LINE_BYTES = 1 << 28
# Text shrinks to a tenth; a large file that unpacks to more times its size is not text.
MAX_UNPACKING_RATIO = 500
_ALWAYS_UNPACKED_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """One file of a text.

    Attributes:
        path: Where it is.
        name: What it is called in records: its path below the text's directory.
        kind: How it is read.
    """

    path: Path
    name: str
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class LocalText:
    """A local SOURCE.

    Attributes:
        spec: As given.
        files: In the order in which they are read, at least one.
        folder: The directory of a data set saved by `datasets`, else None.
        cards: Descriptions and licences beside the files, which are not read.
        other_splits: Files that are not of the training split, which are not read either.
    """

    spec: str
    files: tuple[TextFile, ...]
    folder: Path | None = None
    cards: tuple[str, ...] = ()
    other_splits: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether it is running text rather than a table of documents."""
        return self.files[0].kind == "plain"

    def state(self) -> tuple[tuple[str, int, int], ...]:
        """What changes when a file does, without reading it."""
        found = [(file.path, file.path.stat()) for file in self.files]
        return tuple((str(path), status.st_mtime_ns, status.st_size) for path, status in found)


def is_local(spec: str) -> bool:
    """Whether a SOURCE names files rather than a hub data set."""
    return (
        spec.startswith(("/", "./", "../", "~"))
        or Path(spec).suffix in LOCAL_SUFFIXES
        or not _GLOB_CHARACTERS.isdisjoint(spec)
        or Path(spec).exists()
    )


def find_files(spec: str) -> LocalText:
    """The files of a local SOURCE.

    Raises:
        UsageError: for one that is missing, empty, no regular file, or whose files are not all of one sort.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        if _is_saved_data_set(path):
            saved = _files_below(path).items()
            files = tuple(TextFile(path=file, name=name, kind="saved") for name, file in saved)
            return LocalText(spec=spec, files=files, folder=path)
        found = _files_below(path)
        if not found:
            raise UsageError(
                "this directory holds no text",
                where=spec,
                hint="put text files into it, or name another directory",
            )
    elif path.exists() or _GLOB_CHARACTERS.isdisjoint(spec):
        found = {path.name: path}
    else:
        found = _matches(spec, path)
    cards = cards_among(list(found))
    other_splits = other_splits_among([name for name in found if name not in cards])
    read = {name: file for name, file in found.items() if name not in {*cards, *other_splits}}
    files = tuple(
        TextFile(path=file, name=name, kind=_checked_kind(file, is_alone=len(read) == 1))
        for name, file in read.items()
    )
    _refuse_mixture(spec, files)
    return LocalText(spec=spec, files=files, cards=cards, other_splits=other_splits)


@functools.lru_cache
def cached_sha256(path: str, _mtime_ns: int, _size: int) -> str:
    """sha256 of a file, computed once as long as it does not change."""
    return sha256_of_file(Path(path))


def open_unpacked(path: Path) -> BinaryIO:
    """A file's content, unpacked where it is compressed, as a buffered stream.

    Raises:
        UsageError: on reading, for a damaged file or one that unpacks to far more than text does.
    """
    head = _head(path)
    inner: Any
    if head.startswith(_GZIP):
        inner = gzip.open(path, "rb")  # noqa: SIM115 - closed with what it is wrapped in
    elif head.startswith(_ZSTD):
        import pyarrow as pa

        inner = pa.input_stream(str(path), compression="zstd", buffer_size=1 << 20)
    else:
        return path.open("rb", buffering=1 << 20)
    return cast("BinaryIO", io.BufferedReader(_Unpacked(path, inner), 1 << 20))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers from 1, line ends kept.

    Raises:
        UsageError: for a line that is too long or not UTF-8.
    """
    number = 0
    with open_unpacked(path) as stream:
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise UsageError(
                    "a line is too long",
                    where=f"{path}:{number}",
                    expected=f"at most {MAX_LINE_BYTES:,} bytes",
                    found="more",
                    hint="write one row per line",
                )
            if number == 1:
                line = line.removeprefix(BOM)
            yield number, decoded(line, where=f"{path}:{number}")


def decoded(content: bytes, *, where: str) -> str:
    """UTF-8 bytes as text.

    Raises:
        UsageError: for anything else, with its place.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(content[error.start], where=f"{where}, byte {error.start}") from error


def not_utf8(byte: int, *, where: str) -> UsageError:
    """The error for text in another encoding."""
    return UsageError(
        "this text is not UTF-8",
        where=where,
        found=f"byte 0x{byte:02x}",
        hint="convert it with iconv -f ENCODING -t utf-8, such as -f latin1",
    )


class _Unpacked(io.RawIOBase):
    """The content of a compressed file."""

    def __init__(self, path: Path, inner: Any) -> None:
        self._path, self._inner, self._num_bytes = path, inner, 0
        self._limit = max(_ALWAYS_UNPACKED_BYTES, path.stat().st_size * MAX_UNPACKING_RATIO)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        from pyarrow.lib import ArrowException

        try:
            content = self._inner.read(len(buffer))
        except (EOFError, OSError, zlib.error, ArrowException) as error:
            raise UsageError(
                "this file cannot be unpacked",
                where=str(self._path),
                found=error,
                hint="copy or compress it again",
            ) from error
        self._num_bytes += len(content)
        if self._num_bytes > self._limit:
            raise UsageError(
                "this file unpacks to far more than a text does",
                where=str(self._path),
                expected=f"at most {self._limit:,} bytes",
                found="more",
                hint="unpack it and give the unpacked file, if it really is text",
            )
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._inner.close()
        super().close()


def _is_saved_data_set(path: Path) -> bool:
    names = ("state.json", "dataset_info.json")
    return (path / "dataset_dict.json").is_file() or all((path / name).is_file() for name in names)


def _files_below(directory: Path) -> dict[str, Path]:
    """Every file but hidden ones, and those in hidden directories, by and in the order of its name."""
    found = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*")}
    return {
        name: path
        for name, path in sorted(found.items())
        if not path.is_dir() and not any(part.startswith(".") for part in name.split("/"))
    }


def _matches(spec: str, path: Path) -> dict[str, Path]:
    """What a glob matches, by the paths below the directory that all of it lies in."""
    found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute one
    files = [Path(match) for match in found if not Path(match).is_dir()]
    if not files:
        raise UsageError("no file matches this pattern", where=spec, hint="check the path and the pattern")
    directory = os.path.commonpath([file.parent for file in files])
    return {file.relative_to(directory).as_posix(): file for file in files}


def _checked_kind(path: Path, *, is_alone: bool) -> Kind:
    """How a file is read, by its name and its first bytes."""
    try:
        status = path.stat()
    except OSError as error:
        what = (
            "this text does not exist" if isinstance(error, FileNotFoundError) else "this text cannot be read"
        )
        raise UsageError(
            what, where=str(path), found=error.strerror, hint="check the path and its permissions"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(
            "this text is not a regular file",
            where=str(path),
            found="a FIFO or device",
            hint="write its content to a file and give that",
        )
    if status.st_size == 0 and is_alone:
        raise UsageError("this text is empty", where=str(path), hint="give a file with text")
    kind = kind_of_name(path)
    head = _head(path)
    is_packed = head.startswith((_GZIP, _ZSTD))
    if path.suffix.lower() in PACKED_SUFFIXES and not is_packed and status.st_size:
        raise UsageError(
            "this file is not compressed as its name says",
            where=str(path),
            found=repr(head[:8]),
            hint="rename it without .gz or .zst, or compress it",
        )
    if kind == "parquet":
        if is_packed:
            raise UsageError("a compressed Parquet file cannot be read", where=str(path), hint="unpack it")
        return kind
    with open_unpacked(path) as stream:
        content = stream.read(_HEAD_BYTES)
        refuse_binary(path, content)
        if kind == "plain" and begins_like_json(content):
            return "json" if holds_json_rows(content + stream.read(SNIFFED_BYTES)) else kind
    if kind == "plain":
        refuse_csv(path, content)
    return kind


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise UsageError(
            "this text cannot be read",
            where=str(path),
            found=error.strerror,
            hint="check the file's permissions",
        ) from error


def _refuse_mixture(spec: str, files: tuple[TextFile, ...]) -> None:
    """Refuse plain text among tables, such as notes beside a data set's Parquet files."""
    plain = [file for file in files if file.kind == "plain"]
    if plain and len(plain) < len(files):
        table = next(file for file in files if file.kind != "plain")
        raise UsageError(
            "these files are partly tables and partly plain text",
            where=spec,
            expected="one or the other",
            found=f"{table.name} and {plain[0].name}",
            hint=f"give a pattern in quotes that ends with *{table.path.suffix}",
        )
