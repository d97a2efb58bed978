"""What hostile input must not do, watched while it is read: by audit hooks, limits, and snapshots of files.

An audit hook sees what Python code does, and not what a C library does by itself: snapshots and the kernel's
limits see that. A hook cannot be removed, so all this belongs into a process of its own.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.mutations import MARK

TOKEN = "hf_" + "fuzzTOKENfuzzTOKENfuzzTOKENfuzz"
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY")
# Of one example whose files are a megabyte in all.
CPU_SECONDS = 10.0
MEMORY_BYTES = 300 << 20
_ADDRESS_BYTES = 1 << 30  # beyond what the process holds before
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Of each call that changes a directory, where its paths stand, and the directories that they are relative to.
_CHANGES: dict[str, tuple[tuple[int, int], ...]] = {
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.truncate": ((0, 9),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
}
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "pty.spawn")
_HARMLESS = ("/dev/null", "/proc/self/clear_refs")  # the second is how a peak of memory is measured
_LEAVES = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname")


class ForbiddenError(BaseException):
    """Ends the example at once, whatever handlers of `Exception` are above it."""


@dataclass(kw_only=True)
class Guard:
    """The rules for one process.

    Attributes:
        root: The directory of the examples: nothing below it may be executed.
        writable: Where files may be written.
        programs: Words of command lines that may be started.
        may_compile: Whether a text may be compiled, as Jinja does with a template.
        seen: What was forbidden, in the order in which it was tried.
    """

    root: Path
    writable: tuple[Path, ...]
    programs: tuple[str, ...] = ()
    may_compile: bool = False
    seen: list[str] = field(default_factory=list)
    is_on: bool = False

    def install(self) -> None:
        """Add the hook, for as long as the process lives."""
        self._writable = tuple(os.path.realpath(path) for path in self.writable)
        self._root = os.path.realpath(self.root)
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if (problem := self._problem(event, arguments)) is not None:
            self.is_on = False  # what is done about it is not watched
            self.seen.append(problem)
            raise ForbiddenError(problem)

    def _problem(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event == "open" or event in _CHANGES:
            return self._writes(event, arguments)
        if event in _STARTS:
            words = f"{event} {arguments!r}"
            return (
                None if any(word in words for word in self.programs) else f"starts a program: {words[:200]}"
            )
        if event in _LEAVES:
            return f"asks the network: {event} {arguments[1:]!r}"[:200]
        if event == "pickle.find_class":
            return f"unpickles {arguments!r}"
        if event == "exec":
            name = getattr(arguments[0], "co_filename", "")
            return f"executes {name}" if name.startswith(self._root) else None
        if event == "compile" and not self.may_compile:
            return self._compiles(*arguments)
        return None

    def _writes(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event == "open":
            path, _, flags = arguments
            is_writing = isinstance(flags, int) and flags & _WRITING
            return self._outside("opens for writing", path) if is_writing else None
        paths = (_absolute(arguments, *places) for places in _CHANGES[event])
        return next((problem for path in paths if (problem := self._outside(event, path))), None)

    def _compiles(self, source: object, name: object) -> str | None:
        text = source if isinstance(source, bytes) else str(source).encode("utf-8", "replace")
        is_input = isinstance(name, str) and name.startswith(self._root)
        return f"compiles {name}: {text[:80]!r}" if is_input or MARK.encode() in text else None

    def _outside(self, what: str, path: object) -> str | None:
        if not isinstance(path, str | bytes | os.PathLike):
            return None
        given = Path(os.fsdecode(os.fspath(path))).absolute()
        if str(given) in _HARMLESS:
            return None
        found = os.path.normpath(f"{os.path.realpath(given.parent)}/{given.name}")  # of a link itself
        if any(found == one or found.startswith(f"{one}{os.sep}") for one in self._writable):
            return None
        return f"{what}: {os.fsdecode(os.fspath(path))}"

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Apply the rules while an example is read; what was seen before is forgotten."""
        self.seen.clear()
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False


def _absolute(arguments: tuple[Any, ...], path_at: int, directory_at: int) -> object:
    """A path of a call, from the open directory that it is relative to, if there is one."""
    path = arguments[path_at]
    directory = arguments[directory_at] if directory_at < len(arguments) else -1
    if not isinstance(directory, int) or directory < 0 or not isinstance(path, str | bytes):
        return path
    return f"{Path(f'/proc/self/fd/{directory}').readlink()}/{os.fsdecode(path)}"


def limit_memory() -> None:
    """Let no allocation go beyond what no small input can need: it fails with a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + _ADDRESS_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def resident_bytes(name: str = "VmRSS") -> int:
    """A line of the kernel's record of this process: `VmRSS` is what it holds, `VmHWM` the most it held."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def forget_peak() -> None:
    """Let `VmHWM` begin again at what is held now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


@contextmanager
def limited_cpu(guard: Guard) -> Iterator[None]:
    """End an example that computes for too long; other processes' share of the machine does not count."""

    def expire(_number: int, _frame: FrameType | None) -> None:
        guard.seen.append(f"computes for more than {CPU_SECONDS:.0f} s")
        raise ForbiddenError("too long")

    before = signal.signal(signal.SIGPROF, expire)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def tree_of(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Size, time and kind of everything below a directory, by its path."""
    found = {}
    for path in directory.rglob("*"):
        status = path.lstat()
        size = status.st_size if path.is_file() else 0
        time = status.st_mtime_ns if path.is_file() else 0
        found[str(path)] = (status.st_mode, size, time)
    return found


def files_with_token(directory: Path) -> list[str]:
    """Files below a directory that hold the token of the environment."""
    files = (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    return [str(path) for path in files if TOKEN.encode() in path.read_bytes()]
