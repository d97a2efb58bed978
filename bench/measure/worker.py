"""Models too large to share memory: each in a process of its own, only one of them alive at a time.

A pair's order A B B A then means that the process changes once per pair. A fresh process runs the
generation once untimed before it is measured. Parent and child exchange lines of JSON: the child begins
with the model's `Vocabulary`, then answers every `Generate` with a `Timeline`; a `Failure` stands in place
of either.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import IO, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from bench.design.arms import Arm
from bench.measure.child import ROOT, command_of, load_session, one_line, parser_of, reason_of_end
from bench.measure.timeline import Timeline
from bench.runtimes.base import Vocabulary
from compressor.core.errors import CompressExportError, ResourceError

MODULE = "bench.measure.worker"


@dataclass(frozen=True)
class Generate:
    """Ask for `osl` tokens after every prompt."""

    prompts: list[list[int]]
    osl: int


@dataclass(frozen=True)
class Failure:
    """What the runtime said when it could not do what it was asked for."""

    error: str


_FAILURE = '{"error":'  # how its line begins
Message = Generate | Failure | Vocabulary | Timeline
Answer = TypeVar("Answer", Vocabulary, Timeline)


class WorkerSlot:
    """Holds at most one running worker."""

    def __init__(self) -> None:
        self._worker: WorkerSession | None = None

    def take(self, worker: WorkerSession | None) -> bool:
        """End the worker in the slot and start `worker`; returns whether it had to be started."""
        if self._worker is worker:
            return False
        if self._worker is not None:
            self._worker.stop()
        self._worker = worker
        if worker is not None:
            worker.start()
        return True


class WorkerSession:
    """A model in a child process; see `bench.runtimes.base.Session`."""

    vocabulary: Vocabulary

    def __init__(self, arm: Arm, slot: WorkerSlot) -> None:
        self._arm, self._slot = arm, slot
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None
        self._slot.take(self)

    def generate(self, prompts: NDArray[np.int32], *, osl: int) -> Timeline:
        """See `bench.runtimes.base.Session.generate`; clocks are the child's."""
        question = Generate(prompts.tolist(), osl)
        if self._slot.take(self):
            self._ask(question)
        return self._ask(question)

    def start(self) -> None:
        """Start the process and wait until it has loaded the model."""
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, no shell
            command_of(MODULE, self._arm),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            self.vocabulary = self._read(Vocabulary)
        except BaseException:
            self._slot.take(None)  # nobody uses this session, so nobody else would end its process
            raise

    def stop(self) -> None:
        """End the process and with it the model's memory."""
        if self._process is not None:
            self._process.communicate()
            self._process = None
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def _ask(self, question: Generate) -> Timeline:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # that it ended is found where its answer is read
            _write(self._process.stdin, question)
        return self._read(Timeline)

    def _read(self, kind: type[Answer]) -> Answer:
        """The child's next answer.

        A `Failure` is a RuntimeError in the runtime's own words, a process that ended a ResourceError.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            reason = self._reason_of_end()
            self._slot.take(None)  # the next cell begins with a process of its own
            raise ResourceError(
                "the process that runs the model ended before it answered",
                where=self._arm.id,
                found=reason,
                hint="use a smaller --batch-size or --isl-osl, or a machine with more memory",
            )
        if line.startswith(_FAILURE):
            raise RuntimeError(TypeAdapter(Failure).validate_json(line).error)
        return TypeAdapter(kind).validate_json(line)

    def _reason_of_end(self) -> str:
        assert self._process is not None
        assert self._errors is not None
        code = self._process.wait()
        self._errors.seek(0)
        return reason_of_end(code, self._errors.read())


def main(arguments: list[str] | None = None) -> None:
    """Entry of the child process: answers until its input ends."""
    options = parser_of(MODULE).parse_args(arguments)
    # Native libraries print to file descriptor 1 as they like; the parent's pipe is moved away from it.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    read = TypeAdapter(Generate).validate_json
    try:
        session = load_session(options)
        _write(answers, session.vocabulary)
    except (CompressExportError, RuntimeError, MemoryError, OSError) as error:
        _write(answers, Failure(one_line(error)))
        return
    for line in sys.stdin:
        question = read(line)
        try:
            prompts = np.asarray(question.prompts, dtype=np.int32)
            _write(answers, session.generate(prompts, osl=question.osl))
        except (CompressExportError, RuntimeError, MemoryError, OSError) as error:
            _write(answers, Failure(one_line(error)))


def _write(stream: IO[str], message: Message) -> None:
    stream.write(json.dumps(asdict(message)) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
