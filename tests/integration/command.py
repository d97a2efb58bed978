"""The command line as a user runs it: a process of its own, or, where that shows nothing, this one."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from compressor.cli.main import invoke

SHAPE = {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 2}
PROGRAM = (sys.executable, "-c", "from compressor.cli.main import main; main()")
TIMEOUT_S = 1800  # for a hung process; a slow machine is no failure
POLL_S = 0.002


def command(*arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Any:
    """Run `compress-export` to its end; `stdout` and `stderr` are text."""
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        cwd=cwd,
        env={**os.environ, **(env or {})},
    )


def succeed(*arguments: object, cwd: Path | None = None) -> Any:
    """Run `compress-export` with `--json`, expect success, return its document."""
    done = command(*arguments, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def command_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Like `command`, in this process: without the seconds that importing takes every time."""
    stdout, stderr = io.StringIO(), io.StringIO()
    words = [str(argument) for argument in arguments]
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = invoke(words)
    return subprocess.CompletedProcess(words, code, stdout.getvalue(), stderr.getvalue())


def succeed_here(*arguments: object) -> Any:
    """Like `succeed`, in this process."""
    done = command_here(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write_recipe(path: Path, model: Path, text: Path, **sections: Any) -> Path:
    """A recipe that takes the tiny model through a short run; `sections` replace or extend its own."""
    tree: dict[str, Any] = {
        "model": str(model),
        "prune": {"shape": SHAPE},
        "calibration": {"data": str(text), "size": 4, "seq_len": 32},
        "distill": {"data": str(text), "tokens": 2560, "context_length": 32, "batch_size": 4},
        "repair": {"method": "least-squares"},
        "evaluate": {"seq_len": 64, "size": 4},
        "bench": {"runtime": "none"},
    }
    for name, section in sections.items():
        own = tree.get(name)
        tree[name] = {**own, **section} if isinstance(own, dict) else section
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def start(*arguments: object, ignore: signal.Signals | None = None) -> subprocess.Popen[str]:
    """`compress-export` in a process of its own, started with a signal ignored as `nohup` does.

    A hang-up that the tests' own parent ignores is not ignored here.
    """

    def begin() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        if ignore is not None:
            signal.signal(ignore, signal.SIG_IGN)

    return subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=begin,  # noqa: PLW1509
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, f"ended before its moment: {process.communicate()[1]}"
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(POLL_S)


def kill_when(condition: Callable[[], bool], *arguments: object) -> None:
    """Start `compress-export` and kill it with SIGKILL as soon as `condition` holds."""
    process = start(*arguments)
    wait_for(condition, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def digests(root: Path, parts: Iterable[str]) -> dict[str, str]:
    """sha256 of every file under some parts of a directory."""
    files = [path for part in parts for path in sorted((root / part).rglob("*")) if path.is_file()]
    files += [root / part for part in parts if (root / part).is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
