"""Models too large to share memory: each in a process of its own, only one of them alive at a time.

A pair's order A B B A then means that the process changes once per pair. A fresh process runs the
generation once untimed before it is measured. Parent and child exchange lines of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bench.design.arms import Arm
from bench.measure.timeline import Timeline
from bench.runtimes.base import Session, runtime_named
from compressor.core.errors import CompressExportError, ResourceError

_ROOT = Path(__file__).resolve().parents[2]


class Seat:
    """Holds at most one running worker."""

    def __init__(self) -> None:
        self._worker: WorkerSession | None = None

    def take(self, worker: WorkerSession | None) -> bool:
        """End whoever sits here and let `worker` begin; returns whether it had to begin."""
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

    def __init__(self, arm: Arm, seat: Seat) -> None:
        self._arm, self._seat = arm, seat
        self._process: subprocess.Popen[str] | None = None
        self._complaints: IO[str] | None = None
        self._seat.take(self)
        try:
            facts = self._ask({"ask": "facts"})
        except BaseException:
            self._seat.take(None)  # nobody gets this session, so nobody else could end its process
            raise
        self._vocab_size = int(facts["vocab_size"])
        self._special_token_ids = frozenset(facts["special_token_ids"])

    @property
    def vocab_size(self) -> int:
        """Token ids run from 0 to below this."""
        return self._vocab_size

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Padding, beginning and end of text."""
        return self._special_token_ids

    def generate(self, prompts: NDArray[np.int32], *, osl: int) -> Timeline:
        """See `bench.runtimes.base.Session.generate`; clocks are the child's."""
        question = {"ask": "generate", "prompts": prompts.tolist(), "osl": osl}
        if self._seat.take(self):
            self._ask(question)
        answer = self._ask(question)
        return Timeline(
            start_s=answer["start_s"],
            token_times_s=tuple(answer["token_times_s"]),
            num_input_tokens=tuple(answer["num_input_tokens"]),
            num_output_tokens=tuple(answer["num_output_tokens"]),
            num_gpus=answer["num_gpus"],
        )

    def start(self) -> None:
        """Start the process; it loads the model before it answers."""
        self._complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        # -m finds these packages by the working directory: see bench/measure/peak_memory.py.
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, no shell
            [
                *(sys.executable, "-m", "bench.measure.worker", f"--runtime={self._arm.runtime}"),
                *(f"--precision={self._arm.precision}", f"--model={self._arm.path.resolve()}"),
            ],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
        )

    def stop(self) -> None:
        """End the process and with it the model's memory."""
        if self._process is not None:
            self._process.communicate()
            self._process = None
        if self._complaints is not None:
            self._complaints.close()
            self._complaints = None

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            reason = self._reason_of_death()
            self._seat.take(None)  # the next cell begins with a process of its own
            raise ResourceError("the model's process ended", where=self._arm.id, found=reason)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def _reason_of_death(self) -> str:
        assert self._process is not None
        assert self._complaints is not None
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            return name + (", most likely for want of memory" if name == "SIGKILL" else "")
        self._complaints.seek(0)
        lines = self._complaints.read().strip().splitlines()
        return f"exit code {code}: {lines[-1] if lines else 'without a word'}"


def main(arguments: list[str] | None = None) -> None:
    """Entry of the child process: answers until its input ends."""
    parser = argparse.ArgumentParser(prog="python -m bench.measure.worker")
    for name in ("--runtime", "--precision", "--model"):
        parser.add_argument(name, required=True)
    options = parser.parse_args(arguments)
    # Native libraries print to file descriptor 1 as they like; the parent's pipe is moved away from it.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    session: Session | None = None
    for line in sys.stdin:
        try:
            if session is None:
                session = runtime_named(options.runtime).load(
                    Path(options.model), precision=options.precision
                )
            answer = _answer(session, json.loads(line))
        except (CompressExportError, RuntimeError, MemoryError, OSError) as error:
            answer = {"error": "; ".join(str(error).split("\n")) or type(error).__name__}
        _say(answers, answer)


def _answer(session: Session, question: dict[str, Any]) -> dict[str, Any]:
    if question["ask"] == "facts":
        special = sorted(session.special_token_ids)
        return {"vocab_size": session.vocab_size, "special_token_ids": special}
    prompts = np.asarray(question["prompts"], dtype=np.int32)
    return asdict(session.generate(prompts, osl=question["osl"]))


def _say(stream: IO[str], answer: dict[str, Any]) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
