"""Child processes that hold one model: how they are started, told which model, and how they ended."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from bench.design.arms import Arm
from bench.runtimes.base import Session, StaticRuntime
from compressor.choices.runtimes import runtime_named
from compressor.core.lazy import resolve

# -m puts the working directory on the module path: it must be the one that holds these packages,
# not the user's, where a folder `bench` may well be the output of an earlier run.
ROOT = Path(__file__).resolve().parents[2]


def command_of(module: str, arm: Arm, *options: str) -> list[str]:
    """The command that runs `module` on the arm's model; its working directory must be `ROOT`."""
    return [
        *(sys.executable, "-m", module, f"--code={runtime_named(arm.runtime).code}"),
        *(f"--precision={arm.precision}", f"--model={arm.path.resolve()}", *options),
    ]


def parser_of(module: str) -> argparse.ArgumentParser:
    """The child's side of `command_of`, without the options of its own."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--code", required=True, help="class of the runtime, as package.module:attribute")
    parser.add_argument("--precision", required=True)
    parser.add_argument("--model", type=Path, required=True)
    return parser


def load_session(options: argparse.Namespace) -> Session:
    """The model that a command names, loaded in this process."""
    runtime: StaticRuntime = resolve(options.code)()
    return runtime.load(options.model, precision=options.precision)


def one_line(error: BaseException) -> str:
    """An error as one line, for a table or another process."""
    lines = (line.strip() for line in str(error).splitlines())
    return "; ".join(line for line in lines if line) or type(error).__name__


def reason_of_end(code: int, errors: str) -> str:
    """Why a child process ended, from its exit code and what it wrote to stderr."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + (", most likely for lack of memory" if name == "SIGKILL" else "")
    lines = errors.strip().splitlines()
    return f"exit code {code}: {lines[-1] if lines else 'no message'}"
