"""Memory, disk and permissions: telling what a machine refuses from what is wrong with a file.

Libraries wrap these in their own classes, or say them only in a sentence, and code that expects a corrupt
file catches both. One function decides.
"""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from compressor.core.errors import CompressExportError, NetworkError, ResourceError, VerificationError

_REFUSALS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EFBIG, errno.EMFILE, errno.ENFILE),
)
# torch's allocator, C++, CUDA, ONNX Runtime and the system say it in these words.
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|std::bad_alloc|bad allocation|out of memory"
    r"|cudaErrorMemoryAllocation|failed to allocate memory|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
# A full or forbidden disk, where only a sentence tells: torch's mapped files and its archives of checkpoints.
_DISK_REFUSES = re.compile(
    r"no space left on device|disk quota exceeded|read-only file system|file too large"
    r"|PytorchStreamWriter failed|basic_ios::clear|file write failed"
    r"|inline_container\.cc:\d+\] \. unexpected pos",
    re.IGNORECASE,
)
# How Rust (safetensors, tokenizers) and Python write an error number into a sentence.
_NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)


def as_resource_error(error: BaseException) -> ResourceError | None:
    """The same as a ResourceError, if memory, disk or permissions are behind it, at any depth; else None.

    An error of ours stands as it is, but for a file called corrupt because the machine refused to read it.
    """
    if isinstance(error, ResourceError):
        return error
    # The hub's library reports a full cache as what could not be downloaded.
    if isinstance(error, CompressExportError) and not isinstance(error, VerificationError | NetworkError):
        return None
    for link in _chain(error):
        if isinstance(link, ResourceError):
            return link
        if _is_out_of_memory(link):
            return ResourceError(
                "out of memory",
                found=_sentence(link),
                hint="use smaller batches or shorter sequences, or a machine with more memory",
            )
        if _number(link) in _REFUSALS or _says(_DISK_REFUSES, link):
            name = getattr(link, "filename", None)
            return ResourceError(
                "the system refuses to read or write a file",
                where=str(name) if name else None,
                found=getattr(link, "strerror", None) or _sentence(link),
                hint="check free disk space and permissions, then run the same command again",
            )
    return None


def refused_directory(directory: Path, error: OSError, *, what: str) -> ResourceError:
    """The error of an output directory that cannot be made, written or locked."""
    return ResourceError(
        f"the output directory cannot be {what}",
        where=str(directory),
        found=error.strerror,
        hint="give this one write permission and free space, or choose another --output-dir",
    )


def killed_child(name: str, returncode: int) -> ResourceError | None:
    """The error of a child process that the system killed, which it does for memory; else None."""
    if returncode not in _KILLED:
        return None
    return ResourceError(
        f"{name} was killed, probably because the machine ran out of memory",
        found=f"exit code {returncode}",
        hint="use a machine with more memory, a smaller model or batch, or shorter sequences",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return _number(error) == errno.ENOMEM or _says(_OUT_OF_MEMORY, error) is not None


def _says(words: re.Pattern[str], error: BaseException) -> re.Match[str] | None:
    """Where a library says it; sentences of ours quote others', and are no evidence."""
    return None if isinstance(error, CompressExportError) else words.search(str(error))


def _number(error: BaseException) -> int | None:
    """The system's error number, from the error itself or from its sentence."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _says(_NUMBER, error)
    return int(found[1] or found[2]) if found else None


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
