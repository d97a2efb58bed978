"""What libraries and the system raise, as an error of ours with its exit code."""

from __future__ import annotations

import errno
import os

from compressor.core.errors import (
    CompressExportError,
    NetworkError,
    ResourceError,
    UsageError,
    VerificationError,
)
from compressor.core.network_errors import is_lost_connection
from compressor.core.resource_errors import as_resource_error

# What is wrong with a path itself, whoever tried to use it.
_BAD_PATH = frozenset(
    {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.EEXIST}
)


def as_error_of_ours(error: BaseException) -> CompressExportError | None:
    """The same as an error of ours; None for what nobody expected.

    Memory and disk come first: libraries wrap them, and so do errors of ours that call a file corrupt.
    """
    if (resource := as_resource_error(error)) is not None:
        return resource
    if isinstance(error, CompressExportError):
        return error
    if is_lost_connection(error):
        return NetworkError(
            "a connection was refused or lost",
            found=f"{type(error).__name__}: {error}",
            hint="run the same command again when there is a network",
        )
    if isinstance(error, OSError):
        return _bad_path(error)
    if isinstance(error, UnicodeEncodeError):
        return UsageError(
            "a name or a text is not UTF-8",
            found=ascii(error.object)[:80],
            hint="rename the file, or correct the text",
        )
    return _unreadable(error)


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust (tokenizers, safetensors) gave up; its class is no `Exception`."""
    return type(error).__name__ == "PanicException"


def _unreadable(error: BaseException) -> CompressExportError | None:
    """An input that ends early, is nested too deeply, or that a library crashed on."""
    if isinstance(error, EOFError):  # nothing is ever typed here
        return VerificationError(
            "a file ends early",
            found=error,
            hint="run the same command with --debug to see which file, and make that file again",
        )
    if isinstance(error, RecursionError):
        return VerificationError(
            "an input is nested too deeply to be read",
            found=error,
            hint="run the same command with --debug to see which input, and make it again or simplify it",
        )
    if is_panic(error):
        return VerificationError(
            "a library crashed on this input",
            found=error,
            hint="run the same command with --debug to see where: a file is damaged or the library has a bug",
        )
    return None


def _bad_path(error: OSError) -> CompressExportError | None:
    where = ascii(error.filename)[:200] if error.filename is not None else None
    if isinstance(error, FileNotFoundError) and not _has_current_directory():
        return UsageError(
            "the current directory does not exist any more", hint="cd to a directory that exists"
        )
    if error.errno == errno.ENOENT and "temporary directory" in str(error):
        return ResourceError(
            "no temporary directory can be written",
            found=error.strerror,
            hint="set TMPDIR to a directory with free space and write permission",
        )
    if error.errno in _BAD_PATH:
        return UsageError(
            "this path cannot be used", where=where, found=error.strerror, hint="give another path"
        )
    return None


def _has_current_directory() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 - Path.cwd() is the same call
    except FileNotFoundError:
        return False
    return True
