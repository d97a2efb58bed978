"""Locks between processes: a second one is refused, a killed one leaves nothing behind."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from compressor.api.execution import require_output
from compressor.core.errors import ResourceError, UsageError
from compressor.runs import locking
from compressor.runs.artifact import ARTIFACT_FILE
from compressor.runs.locking import LOCK_FILE, lock_run, lock_stage

HOLD = """
import pathlib, sys, time
from compressor.runs.locking import lock_run, lock_stage
with {"run": lock_run, "stage": lock_stage}[sys.argv[1]](pathlib.Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def held_elsewhere(kind: str, directory: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, kind, str(directory)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_who_waits_goes_on_when_the_other_ends(tmp_path: Path) -> None:
    out, entered = tmp_path / "out", threading.Event()

    def wait() -> None:
        with lock_stage(out, wait=True):
            entered.set()

    waiting = threading.Thread(target=wait)
    with held_elsewhere("stage", out):
        waiting.start()
        assert not entered.wait(0.3)
    waiting.join(60)
    assert entered.is_set()


def refused(lock: Callable[[Path], AbstractContextManager[None]], directory: Path) -> None:
    with pytest.raises(UsageError, match="another process"), lock(directory):
        pass


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run" / "stages").mkdir(parents=True)
    (tmp_path / "run" / LOCK_FILE).touch()
    return tmp_path / "run"


def test_two_runs_and_a_stage_of_the_same_name(run: Path) -> None:
    with held_elsewhere("run", run):
        refused(lock_run, run)
        refused(lock_stage, run)


def test_a_stage_inside_a_run(run: Path) -> None:
    inside = run / "stages" / "extra"
    with held_elsewhere("run", run):
        refused(lock_stage, inside)
    with held_elsewhere("stage", inside):
        refused(lock_run, run)
        with lock_stage(run / "stages" / "another"):
            pass


def test_two_stages_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out", target_is_directory=True)
    with held_elsewhere("stage", tmp_path / "out"):
        refused(lock_stage, tmp_path / "link")


@pytest.mark.parametrize("kind", ["run", "stage"])
def test_a_killed_process_holds_nothing(run: Path, kind: str) -> None:
    with held_elsewhere(kind, run) as process:
        process.kill()
        process.wait()
        with lock_run(run):
            pass
        with lock_stage(run):
            pass


def test_a_stage_leaves_no_lock_behind(tmp_path: Path) -> None:
    with lock_stage(tmp_path / "out"):
        assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]
    assert list(tmp_path.iterdir()) == []


def fail_with(number: int) -> Callable[..., Any]:
    """A stand-in for a call to a file system that answers so."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.timeout(20)
def test_a_lock_that_is_a_fifo_is_not_waited_for(run: Path) -> None:
    (run / LOCK_FILE).unlink(missing_ok=True)
    os.mkfifo(run / LOCK_FILE)

    with pytest.raises(ResourceError, match="cannot be written"), lock_run(run):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_warned_of(
    run: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fcntl, "flock", fail_with(number))
    with lock_run(run):
        assert "has no locks" in caplog.text


def test_a_lock_that_fails_is_a_resource_error(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", fail_with(errno.EIO))
    with pytest.raises(ResourceError, match="cannot be locked"), lock_run(run):
        pass


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_finished_work_on_a_read_only_disk_is_taken_as_it_is(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins for a disk that cannot be written: tests may run as root, whom no mode keeps out."""
    done = tmp_path / "done"
    done.mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)
    real, fail = locking.open_lock, fail_with(number)
    monkeypatch.setattr(
        locking, "open_lock", lambda path, mode="a": (fail if mode == "a" else real)(path, mode)
    )
    with pytest.raises(ResourceError), lock_stage(done):
        pass
    (done / ARTIFACT_FILE).touch()
    with lock_stage(done):
        assert require_output(done, resume=False)
    with pytest.raises(ResourceError, match="cannot be made"):
        require_output(done, resume=False, overwrite=True)
