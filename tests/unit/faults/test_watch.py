"""That the suite's injection does what it says: other writers than Python, and faults that really happen."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.faults.points import Point, disk_points, kill_points, spread
from tests.faults.trees import difference, put, take, with_file
from tests.faults.watch import CREATE, REMOVE, RENAME, WRITE, Change, Held, UnsupportedError, install, receive

Answer = Callable[[Held, Change, int], None]


def watched(work: Callable[[], object], answer: Answer) -> tuple[list[Change], int]:
    """What a forked process changes while it works, and how it ended."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            socket.send_fds(theirs, [b"x"], [install()])
            work()
            code = 0
        except UnsupportedError:
            theirs.sendall(b"no")
            code = 3
        except OSError as error:
            code = error.errno or 1
        finally:
            os._exit(code)
    theirs.close()
    _, descriptors, _, _ = socket.recv_fds(ours, 10, 1)
    if not descriptors:
        os.waitpid(pid, 0)
        pytest.skip("system calls cannot be held here")
    seen = []
    poll = select.poll()
    poll.register(descriptors[0], select.POLLIN)
    while poll.poll()[0][1] & select.POLLIN:
        held = receive(descriptors[0])
        if held is not None:
            seen.append(held.change())
            answer(held, seen[-1], pid)
    return seen, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def go_on(held: Held, _change: Change, _pid: int) -> None:
    held.proceed()


def test_what_rust_c_and_a_started_program_write_is_seen(tmp_path: Path) -> None:
    def work() -> None:
        save_file({"a": np.zeros(3, np.float32)}, tmp_path / "a.safetensors")
        np.ones(3).tofile(tmp_path / "b.bin")
        script = "import os, sys; open(sys.argv[1], 'w').write('x'); os.unlink(sys.argv[1])"
        subprocess.run([sys.executable, "-c", script, tmp_path / "c"], check=True)

    seen, code = watched(work, go_on)
    assert code == 0
    written = {Path(change.path).name for change in seen if change.kind == WRITE}
    assert {"b.bin", "c"} <= written
    assert any(change.kind == REMOVE and change.path == str(tmp_path / "c") for change in seen)
    made = {change.path for change in seen if change.kind == WRITE}
    made |= {change.target for change in seen if change.kind == RENAME}
    assert str(tmp_path / "a.safetensors") in made


def test_a_killed_process_has_not_renamed(tmp_path: Path) -> None:
    def work() -> None:
        (tmp_path / "new").write_text("x")
        (tmp_path / "new").rename(tmp_path / "old")

    def kill(held: Held, change: Change, pid: int) -> None:
        if change.kind == RENAME:
            os.kill(pid, signal.SIGKILL)
        else:
            held.proceed()

    seen, code = watched(work, kill)
    assert (seen[-1], code) == (Change(RENAME, str(tmp_path / "new"), str(tmp_path / "old")), -9)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_refused_write_fails_as_on_a_full_disk(tmp_path: Path) -> None:
    def refuse(held: Held, change: Change, _pid: int) -> None:
        held.refuse(errno.ENOSPC) if change.kind == WRITE else held.proceed()

    _, code = watched(lambda: (tmp_path / "file").write_text("x"), refuse)
    assert code == errno.ENOSPC
    assert (tmp_path / "file").read_text() == ""


def point(kind: str, path: str, occurrence: int = 1) -> Point:
    return Point(kind, path, "", occurrence)


def test_of_each_file_the_first_and_the_last_write_are_points() -> None:
    first = [point(CREATE, "a"), *(point(WRITE, "a", number) for number in (1, 2, 3, 4, 5))]
    second = [point(CREATE, "a", 2), point(WRITE, "a", 6), point(REMOVE, "a")]
    assert kill_points([*first, *second]) == [first[0], first[1], first[5], *second]
    assert disk_points([*first, *second]) == [first[0], first[1], first[3], first[5], *second[:2]]


def test_a_spread_takes_one_of_each_part_and_the_same_every_time() -> None:
    found = spread(range(100), 10)
    assert [number // 10 for number in found] == list(range(10))
    assert found == spread(range(100), 10)
    assert spread("abc", None) == spread("abc", 9) == ["a", "b", "c"]


def test_a_tree_that_was_put_back_differs_in_nothing_and_a_changed_one_says_where(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("inner")
    tree = take(tmp_path)
    put(tmp_path, {})
    assert not list(tmp_path.iterdir())
    put(tmp_path, tree)
    assert difference(take(tmp_path), tree) == ""
    changed = with_file(tree, "inner/file", b"12355")
    assert difference(changed, tree) == "inner/file differs"
    assert difference(changed, tree, measured=("inner/*",)) == ""
    assert difference(with_file(tree, "inner/file", None), tree) == "inner/file is missing"
    assert difference(tree, with_file(tree, "inner/file", None)) == "inner/file is left over"
