"""Programs of others as child processes: bounded in time, ended with all their children, their end explained.

Servers start workers that outlive a killed parent and keep the GPU's memory: a program gets a session of its
own, and all of it is ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO

import psutil

from compressor.core.errors import ResourceError
from compressor.core.resource_errors import as_resource_error, killed_child

_GRACE_S = 10.0
_POLL_S = 0.05
# How vLLM says that another process holds the GPU's memory.
_SHARED = re.compile(r"(Free memory on device.*less than desired GPU memory utilization.*)")
_OTHERS_HINT = "end the other process on the GPU (nvidia-smi lists them), then run the same command again"


class Program:
    """A child process in a session of its own, whose output goes to a file.

    Attributes:
        name: What errors call it.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.name, self._process, self._log = name, process, log

    @property
    def returncode(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def output(self) -> str:
        """What it has written until now, both streams together."""
        self._log.seek(0)
        return self._log.read().decode("utf-8", errors="replace")

    def wait(self, deadline_s: float, *, beside: Program | None = None) -> None:
        """Wait until it ends well.

        Args:
            deadline_s: By `time.monotonic()`.
            beside: A program that has to run as long as this one.

        Raises:
            ResourceError: when it fails, when it does not end in time, or when the one `beside` ends first.
        """
        while self.returncode is None:
            if beside is not None and beside.returncode is not None:
                raise failure(beside.name, beside.returncode, beside.output())
            if time.monotonic() > deadline_s:
                raise ResourceError(
                    f"{self.name} did not end in time and was stopped",
                    found=f"its last line: {_last_line(self.output())}",
                    hint="see the message above; raise --bench-timeout if it only needs longer",
                )
            time.sleep(_POLL_S)
        if self.returncode:
            raise failure(self.name, self.returncode, self.output())

    def end(self) -> None:
        """End it and everything that it started: asked first, then killed, and waited for until all are gone.

        Workers are ended by the kernel a moment after the signal, and hold their memory until then.
        """
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
        deadline_s = time.monotonic() + _GRACE_S
        while _is_alive(self._process.pid) and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)


@contextlib.contextmanager
def running(name: str, command: Sequence[str]) -> Iterator[Program]:
    """A program that is ended with all its children at the end of the block, however that comes."""
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(  # noqa: S603 - an executable found on PATH, arguments as a list
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        program = Program(name, process, log)
        try:
            yield program
        finally:
            program.end()


def failure(name: str, returncode: int, output: str) -> ResourceError:
    """Why a program ended, in the line of its output that says so: memory first, else the last one."""
    if shared := _SHARED.search(output):
        return ResourceError(
            f"{name} found the GPU's memory taken by another process", found=shared[1], hint=_OTHERS_HINT
        )
    if killed := killed_child(name, returncode):
        return killed
    for line in reversed(output.splitlines()):
        if as_resource_error(RuntimeError(line.strip())) is not None:
            return ResourceError(
                f"{name} ran out of memory",
                found=line.strip(),
                hint="lower --concurrency or --isl-osl, or use a GPU with more memory",
            )
    return ResourceError(
        f"{name} failed",
        found=f"exit code {returncode}: {_last_line(output)}",
        hint="see the message above; if the GPU's memory is too small, lower --concurrency",
    )


def _is_alive(group: int) -> bool:
    """Whether a process of the group still runs; one that ended and was not collected does not."""
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1] if lines else "no output"
