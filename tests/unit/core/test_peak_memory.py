"""Peak memory of a piece of work: its own, not that of what came before it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from compressor.core import peak_memory
from compressor.core.peak_memory import measured_memory

MIB = 1 << 20
_CHILD = (
    f"import time; data = bytearray(300 * {MIB}); data[::4096] = b'1' * len(data[::4096]); time.sleep(1.5)"
)


def hold(num_bytes: int) -> None:
    data = bytearray(num_bytes)
    data[::4096] = b"1" * len(data[::4096])


def measured(num_bytes: int) -> int:
    with measured_memory() as peak:
        hold(num_bytes)
    return peak.num_bytes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux resets its record")
def test_a_small_work_after_a_large_one_is_small() -> None:
    large, small = measured(400 * MIB), measured(40 * MIB)
    assert large - small > 300 * MIB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other C libraries keep other amounts")
def test_what_was_freed_in_small_pieces_does_not_count() -> None:
    """The C library keeps what lies below a piece that is still in use."""
    before = measured(0)
    pieces = [bytes(64 << 10) for _ in range(3000)]
    pieces.append(b"1" * (64 << 10))
    in_use = pieces[-1]
    del pieces
    assert measured(0) - before < 60 * MIB
    assert in_use


def test_children_count() -> None:
    alone = measured(0)
    with measured_memory() as peak:
        subprocess.run([sys.executable, "-c", _CHILD], check=True)
    assert peak.num_bytes - alone > 250 * MIB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux resets its record")
def test_a_child_that_waits_counts_beside_the_largest_of_the_process() -> None:
    alone = measured(400 * MIB)
    waiting = _CHILD.replace("time.sleep(1.5)", "print(flush=True); input()")
    with subprocess.Popen(
        [sys.executable, "-c", waiting], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        beside = measured(400 * MIB)
        child.communicate(b"\n")
    assert beside - alone > 250 * MIB


def test_where_the_system_keeps_no_record_samples_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_memory, "_reset_high_water", lambda: False)
    data = bytearray(b"1") * (100 * MIB)
    with measured_memory() as peak:
        del data
    assert peak.num_bytes > 100 * MIB
