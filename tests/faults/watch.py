"""Every change that a program is about to make to files, held until somebody decides about it.

Linux tells another process of chosen system calls before it does them (seccomp's user notification). So a
change is seen whoever makes it: Python, a library in C++ or Rust, a thread, or a program that was started.
Only x86-64 is known here. What is written through a mapped file is not seen.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from dataclasses import dataclass
from pathlib import Path

_PR_SET_NO_NEW_PRIVS = 38
_SYS_SECCOMP, _SET_MODE_FILTER = 317, 1
_NEW_LISTENER, _WAIT_KILLABLE = 1 << 3, 1 << 5
_AUDIT_ARCH_X86_64 = 0xC000003E
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_O_CREAT, _O_TRUNC = 0o100, 0o1000
_AT_FDCWD, _AT_REMOVEDIR = -100, 0x200
_MAX_PATH = 4096

CREATE, WRITE, RENAME, REMOVE, MKDIR, RESIZE, LINK, CONNECT = (
    *("create", "write", "rename", "remove", "make a directory", "resize", "link", "connect"),
)
# What takes room. A file that is only made longer takes none until it is written.
GROWING = frozenset({CREATE, WRITE, MKDIR, LINK})
# Numbers of calls by what they do, and where their paths are among their arguments: a pair is a directory
# and a path in it, a number a path, and `fd` an open file.
_CALLS: dict[int, tuple[str, tuple[tuple[int, int] | int | str, ...]]] = {
    **dict.fromkeys((1, 18, 20, 296, 328), (WRITE, ("fd",))),  # write, pwrite64, writev, pwritev, pwritev2
    **dict.fromkeys((77, 285), (RESIZE, ("fd",))),  # ftruncate, fallocate
    40: (WRITE, ("fd",)),  # sendfile, to its first argument
    326: (WRITE, ("fd of third",)),  # copy_file_range
    2: (CREATE, (0,)),
    257: (CREATE, ((0, 1),)),  # openat
    82: (RENAME, (0, 1)),
    **dict.fromkeys((264, 316), (RENAME, ((0, 1), (2, 3)))),  # renameat, renameat2
    **dict.fromkeys((87, 84), (REMOVE, (0,))),  # unlink, rmdir
    263: (REMOVE, ((0, 1),)),  # unlinkat
    83: (MKDIR, (0,)),
    258: (MKDIR, ((0, 1),)),  # mkdirat
    86: (LINK, (0, 1)),
    265: (LINK, ((0, 1), (2, 3))),  # linkat
    88: (LINK, (1,)),  # symlink, whose first argument is only a text
    266: (LINK, ((1, 2),)),  # symlinkat
    42: (CONNECT, ()),
}
_FLAGS_AT = {2: 1, 257: 2}
_TO_STREAMS = (1, 18, 20, 296, 328, 40)  # to the standard streams they are no change of a file


class UnsupportedError(Exception):
    """This system cannot hold system calls."""


@dataclass(frozen=True)
class Change:
    """A change of files, before it happens: its kind, its path and, for renames and links, its target."""

    kind: str
    path: str
    target: str = ""


def install() -> int:
    """Hold the changes of this process and of all that it starts; returns the descriptor that tells of them.

    Raises:
        UnsupportedError: on another system, or where it is not allowed.
    """
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        raise UnsupportedError(f"system calls are held on Linux on x86-64 only, not on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    program = _program()
    filters = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(filters))
    for flags in (_NEW_LISTENER | _WAIT_KILLABLE, _NEW_LISTENER):
        descriptor: int = libc.syscall(_SYS_SECCOMP, _SET_MODE_FILTER, flags, described)
        if descriptor >= 0:
            return descriptor
    raise UnsupportedError(f"the system holds no system calls: {os.strerror(ctypes.get_errno())}")


def _program() -> bytes:
    """The filter, in the kernel's small language: instructions of (code, jump if, jump if not, value)."""
    notify, allow = (_RETURN, 0, 0, _NOTIFY), (_RETURN, 0, 0, _ALLOW)
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _AUDIT_ARCH_X86_64), allow, (_LOAD, 0, 0, 0)]
    for number in _CALLS:
        if number in _TO_STREAMS:
            steps += [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, 16), (_GREATER, 0, 1, 2), notify, allow]
        elif number in _FLAGS_AT:
            flags = 16 + 8 * _FLAGS_AT[number]
            steps += [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, flags), (_ANY_BIT, 0, 1, _O_CREAT | _O_TRUNC)]
            steps += [notify, allow]
        else:
            steps += [(_EQUAL, 0, 1, number), notify]
    return b"".join(struct.pack("HBBI", *step) for step in [*steps, allow])


class Held:
    """A system call that waits for an answer."""

    def __init__(self, listener: int, notification: bytes) -> None:
        self._listener = listener
        self._id, self.thread, _, number, _, _, *self._arguments = struct.unpack("QIIiIQ6Q", notification)
        self._number = number

    def change(self) -> Change:
        """What it is about to do; an empty path where it can no longer be told, or is no file's."""
        kind, places = _CALLS[self._number]
        paths = [self._path(place) for place in places]
        if kind == CREATE and paths and os.path.lexists(paths[0]):
            kind = RESIZE  # an existing file that is opened, and cut where that is asked for
        return Change(kind, *paths) if paths else Change(kind, "")

    def proceed(self) -> None:
        """Let it happen."""
        self._answer(0, _CONTINUE)

    def refuse(self, number: int) -> None:
        """Let it fail with an error number."""
        self._answer(-number, 0)

    def _answer(self, error: int, flags: int) -> None:
        try:
            fcntl.ioctl(self._listener, _SEND, struct.pack("QqiI", self._id, 0, error, flags))
        except OSError as gone:
            if gone.errno != errno.ENOENT:  # the caller was killed meanwhile
                raise

    def _path(self, place: tuple[int, int] | int | str) -> str:
        try:
            if isinstance(place, str):
                return self._open_file(self._arguments[2 if place.endswith("third") else 0])
            directory, at = place if isinstance(place, tuple) else (None, place)
            path = self._text(self._arguments[at])
            if path.startswith("/"):
                return os.path.normpath(path)
            base = _AT_FDCWD if directory is None else ctypes.c_int(self._arguments[directory]).value
            start = (
                Path(f"/proc/{self.thread}/cwd").readlink() if base == _AT_FDCWD else self._open_file(base)
            )
            return os.path.normpath(f"{start}/{path}")
        except OSError:
            return ""

    def _open_file(self, descriptor: int) -> str:
        return str(Path(f"/proc/{self.thread}/fd/{descriptor}").readlink()).removesuffix(" (deleted)")

    def _text(self, address: int) -> str:
        with Path(f"/proc/{self.thread}/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            try:
                found = memory.read(_MAX_PATH)
            except OSError:  # the next page is not there
                memory.seek(address)
                found = memory.read(4096 - address % 4096)
        return os.fsdecode(found.split(b"\0", 1)[0])


def receive(listener: int) -> Held | None:
    """The next call that waits; None when its process ended meanwhile."""
    buffer = bytearray(80)
    try:
        fcntl.ioctl(listener, _RECEIVE, buffer)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):
            return None
        raise
    return Held(listener, bytes(buffer))
