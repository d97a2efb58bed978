"""The program in processes that are forked from a warm one, its changes of files held one by one."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.watch import Change, Held, UnsupportedError, install, receive

Words = Sequence[object]
TIMEOUT_S = 300.0
_ENDING_S = 20.0  # what is left of a program's processes when it has ended
KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Kill:
    """The verdict that ends a process, by its rank, before its change happens; None is the whole program."""

    rank: int | None = None


# None lets a change happen, a number is the error that it fails with.
Verdict = Kill | int | None
Decide = Callable[[int, Change], Verdict]


@dataclass(kw_only=True)
class Done:
    """How a program ended.

    Attributes:
        codes: Exit code of each of its processes; negative is a signal's number.
        stdout: Of the first process.
        stderr: Of all of them.
        left: Whether something that it had started was still there long after it, and was killed.
        waited_s: From the kill, or else the end of the first process, to the end of the last.
    """

    codes: list[int]
    stdout: str
    stderr: str
    left: bool = False
    waited_s: float = 0.0

    @property
    def code(self) -> int:
        return self.codes[0]

    @property
    def errors(self) -> int:
        return sum(line.startswith("error:") for line in self.stderr.splitlines())


@dataclass
class _Process:
    pid: int
    listener: int
    rank: int
    code: int | None = None
    ended: float = 0.0
    is_silent: bool = False


@dataclass(kw_only=True)
class Place:
    """Where programs run: directories of their own for streams and temporary files."""

    scratch: Path
    temporary: Path
    environment: dict[str, str] = field(default_factory=dict)
    patch: Callable[[], None] | None = None


class Running:
    """A program that was started: one process, or several that work together."""

    def __init__(
        self, words: Words, place: Place, *, processes: int = 1, name: str = "a", patch: Any = None
    ) -> None:
        self._streams = [place.scratch / f"{name}-{rank}" for rank in range(processes)]
        port = str(_free_port())
        self._members = []
        for rank in range(processes):
            more = dict(place.environment, TMPDIR=str(place.temporary))
            if processes > 1:
                more |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                more |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            self._members.append(_fork(words, more, self._streams[rank], rank, patch))

    def finish(self, decide: Decide | None = None, *, timeout_s: float = TIMEOUT_S) -> Done:
        """Decide about every change until it ends."""
        started, killed = time.monotonic(), 0.0
        left = False
        while any(member.code is None or not member.is_silent for member in self._members):
            for member, held in self._waiting():
                verdict = decide(member.rank, held.change()) if decide else None
                if isinstance(verdict, Kill):
                    killed = killed or time.monotonic()
                    self.kill(verdict.rank)
                    if verdict.rank not in (None, member.rank):
                        held.proceed()  # else it never is: an answer could still come before the signal
                elif verdict is not None:
                    held.refuse(verdict)
                else:
                    held.proceed()
            self._reap()
            now = time.monotonic()
            if now - started > timeout_s:
                self.kill()
                left = True
            if all(m.code is not None for m in self._members):
                last = max(m.ended for m in self._members)
                if now - last > _ENDING_S and not left:
                    self.kill()
                    left = True
        ends = [member.ended for member in self._members]
        for member in self._members:
            os.close(member.listener)
        return Done(
            codes=[int(member.code or 0) for member in self._members],
            stdout=_text(self._streams[0].with_suffix(".out")),
            stderr="".join(_text(path.with_suffix(".err")) for path in self._streams),
            left=left,
            waited_s=max(ends) - (killed or min(ends)),
        )

    def kill(self, rank: int | None = None) -> None:
        """SIGKILL to one of its processes with all that it started, or to all."""
        for member in self._members:
            if rank in (None, member.rank):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(member.pid, signal.SIGKILL)

    def _waiting(self) -> list[tuple[_Process, Held]]:
        poll = select.poll()
        by_descriptor = {member.listener: member for member in self._members if not member.is_silent}
        for descriptor in by_descriptor:
            poll.register(descriptor, select.POLLIN)
        found = []
        for descriptor, event in poll.poll(20):
            member = by_descriptor[descriptor]
            if event & select.POLLIN:
                held = receive(descriptor)
                if held is not None:
                    found.append((member, held))
            elif event & (select.POLLHUP | select.POLLERR):
                member.is_silent = True
        return found

    def _reap(self) -> None:
        for member in self._members:
            if member.code is None:
                pid, status = os.waitpid(member.pid, os.WNOHANG)
                if pid:
                    member.code, member.ended = os.waitstatus_to_exitcode(status), time.monotonic()


def perform(words: Words, place: Place, decide: Decide | None = None, **options: Any) -> Done:
    """Run the program to its end; see `Running`."""
    return Running(words, place, **options).finish(decide)


def warm(names: Path) -> None:
    """Import what an earlier program imported: its successors find it there."""
    for name in names.read_text(encoding="utf-8").split() if names.is_file() else ():
        if name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def _fork(words: Words, environment: Mapping[str, str], streams: Path, rank: int, patch: Any) -> _Process:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _child(words, environment, streams, theirs, patch)
    theirs.close()
    message, descriptors, _, _ = socket.recv_fds(ours, 200, 1)
    ours.close()
    if not descriptors:
        os.waitpid(pid, 0)
        raise UnsupportedError(message.decode())
    return _Process(pid, descriptors[0], rank)


def _child(
    words: Words, environment: Mapping[str, str], streams: Path, told: socket.socket, patch: Any
) -> None:
    """What the forked process does; it never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.environ.update(environment)
        for number, suffix in ((1, ".out"), (2, ".err")):
            opened = os.open(streams.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(opened, number)
            os.close(opened)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _as_fresh()
        before = set(sys.modules)
        try:
            listener = install()
        except UnsupportedError as error:
            told.sendall(str(error).encode())
            os._exit(3)
        socket.send_fds(told, [b"x"], [listener])
        os.close(listener)
        told.close()
        code = _main([str(word) for word in words], patch)
        new = "\n".join(sorted(set(sys.modules) - before))
        streams.with_suffix(".modules").write_text(new, encoding="utf-8")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _as_fresh() -> None:
    """What a process that was not forked would find: its own streams and its own chance."""
    import tempfile

    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    tempfile.tempdir = None
    tempfile.gettempdir()  # tries the directory with files of its own, in every process before it is watched
    renew_thread_pool()
    random.seed()
    np.random.seed()  # noqa: NPY002 - libraries draw from the global generator
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)


def renew_thread_pool() -> None:
    """After a fork: torch marks its pool as lost, and fails if two threads are the first to ask for it."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(torch.get_num_threads())


def _main(words: list[str], patch: Any) -> int:
    from compressor.cli.main import main

    if patch is not None:
        patch()
    sys.argv = ["compress-export", *words]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
