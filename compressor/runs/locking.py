"""One process per output directory: a lock that ends with its process, however that ends.

A run locks `.lock` in its directory. A command of one stage, whose directory appears only when it is
finished, locks `.<name>.lock` beside it, and shares the lock of a run directory that it works inside.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from compressor.core.console import Console
from compressor.core.errors import UsageError
from compressor.core.processes import on_main
from compressor.core.resource_errors import refused_directory
from compressor.runs.artifact import ARTIFACT_FILE

LOCK_FILE = ".lock"
# What file systems that cannot lock say, such as NFS without its lock service.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def open_lock(path: Path, mode: str = "a") -> IO[str]:
    """Open a lock's file; its content stays, and a FIFO in its place is an error, not waited for.

    Raises:
        OSError: when it cannot be opened.
    """
    # Only the built-in takes an opener.
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK, 0o666))


def flock(file: IO[str], operation: int, *, where: Path) -> None:
    """Lock an open file of a directory; where its file system cannot lock, go on with a warning.

    Raises:
        BlockingIOError: while another process holds it, with `fcntl.LOCK_NB`.
        ResourceError: when it cannot be locked for another reason.
    """
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise refused_directory(where, error, what="locked") from error
        Console().warn(f"{where}: its file system has no locks; nothing keeps a second process out")


@contextmanager
def lock_run(directory: Path) -> Iterator[None]:
    """Work alone in an existing run directory.

    Raises:
        UsageError: while another process works in it, or a command of a stage on it.
        ResourceError: when it cannot be written.
    """
    with ExitStack() as held:
        _hold(held, directory / LOCK_FILE, directory)
        if _beside(directory).is_file():
            with ExitStack() as briefly:
                _hold(briefly, _beside(directory), directory)
        yield


@contextmanager
def lock_stage(out_dir: Path, *, wait: bool = False) -> Iterator[None]:
    """Work alone on a stage's output directory; the main process holds the lock for all.

    With `wait`, another process that works there is waited for instead of refused.

    Raises:
        UsageError, ResourceError: as `lock_run`.
    """
    with ExitStack() as held:
        on_main(lambda: _hold_stage(held, out_dir, wait=wait))
        yield


def _hold_stage(held: ExitStack, out_dir: Path, *, wait: bool) -> None:
    path = _beside(out_dir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused_directory(out_dir, error, what="written") from error
    _hold(held, path, out_dir, wait=wait)
    held.callback(path.unlink, missing_ok=True)  # before it is released: nobody else can hold it
    directory = out_dir.resolve()
    for run in (directory, *directory.parents):
        if (run / LOCK_FILE).is_file():
            _hold(held, run / LOCK_FILE, run, shared=True)


def _beside(out_dir: Path) -> Path:
    directory = out_dir.resolve()
    return directory.with_name(f".{directory.name}.lock")


def _hold(held: ExitStack, path: Path, directory: Path, *, shared: bool = False, wait: bool = False) -> None:
    """Lock a file until `held` closes; again, if it was removed by who held it before."""
    while True:
        try:
            # A lock that is shared may belong to a directory that cannot be written.
            lock: IO[str] = held.enter_context(open_lock(path, "r" if shared else "a"))
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES) and (directory / ARTIFACT_FILE).is_file():
                return  # finished work on a disk that cannot be written: nobody else changes it
            raise refused_directory(directory, error, what="written") from error
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            flock(lock, kind if wait else kind | fcntl.LOCK_NB, where=directory)
        except BlockingIOError as error:
            raise UsageError(
                "another process works in this output directory",
                where=str(directory),
                hint="wait for it to end, or choose another --output-dir",
            ) from error
        if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
            return
