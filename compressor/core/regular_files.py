"""Text files that someone else may have written: regular ones of a bounded size, or one clear error."""

from __future__ import annotations

import stat
from pathlib import Path

from compressor.core.errors import CompressExportError


def read_regular_text(path: Path, *, what: str, error: type[CompressExportError], max_bytes: int) -> str:
    """The text of a UTF-8 file; `what` it is, such as `the weight index`, begins the error's message.

    Raises:
        CompressExportError: `error`, for a file that is missing, special (it is not opened), too large or
            not UTF-8.
    """
    content = read_regular_bytes(path, what=what, error=error, max_bytes=max_bytes)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"{what} cannot be read", where=str(path), found=problem) from problem


def read_regular_bytes(path: Path, *, what: str, error: type[CompressExportError], max_bytes: int) -> bytes:
    """The content of a file; see `read_regular_text`."""

    def refuse(reason: object, expected: object = None) -> CompressExportError:
        return error(f"{what} cannot be read", where=str(path), expected=expected, found=reason)

    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise refuse("a directory, FIFO or device", "a regular file")
        if status.st_size > max_bytes:
            raise refuse(f"{status.st_size:,} bytes", f"at most {max_bytes:,} bytes")
        return path.read_bytes()
    except OSError as problem:
        raise refuse(problem.strerror) from problem
    except ValueError as problem:  # a path that holds a NUL
        raise refuse(problem) from problem


def stays_below(name: str) -> bool:
    """Whether a name that a record gives to a file leads nowhere but below the directory of that record."""
    return bool(name) and not name.startswith("/") and "\0" not in name and ".." not in name.split("/")
