"""The most memory that a process and its children hold during some work."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import threading
from collections.abc import Iterator
from pathlib import Path

# Often enough for stages; rare enough not to disturb a benchmark.
_EVERY_S = 0.5
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """`num_bytes`: the largest resident set so far of this process, or of it and its children together."""

    def __init__(self) -> None:
        self.num_bytes = _resident_bytes()

    def look(self, *, again: bool) -> None:
        """Take a sample; `again`: the system's own record of this process was begun with this work.

        A child that is still there, such as a worker that waits for more, was beside the record's largest.
        """
        children = _children_bytes()
        own = _high_water_bytes() if again else 0
        self.num_bytes = max(self.num_bytes, _resident_bytes(), own + children)


@contextlib.contextmanager
def measured_memory() -> Iterator[PeakMemory]:
    """Measure the work of a `with` block, twice a second; exactly for this process, where Linux tells.

    What earlier work left to be reused goes back to the system first, so that the figure is this work's own.
    """
    release_memory()
    peak, stop, is_reset = PeakMemory(), threading.Event(), _reset_high_water()

    def sample() -> None:
        while not stop.wait(_EVERY_S):
            peak.look(again=False)

    thread = threading.Thread(target=sample, name="peak memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
        peak.look(again=is_reset)


def release_memory() -> None:
    """Give back to the system what was freed: the C library keeps it for this process otherwise."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another library than glibc keeps less
        ctypes.CDLL(None).malloc_trim(0)


def _resident_bytes() -> int:
    """Resident sets of this process and its children; pages that they share count for each."""
    import psutil

    return int(psutil.Process().memory_info().rss) + _children_bytes()


def _children_bytes() -> int:
    import psutil

    total = 0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            total += int(child.memory_info().rss)
    return total


def _high_water_bytes() -> int:
    """The largest resident set of this process since it was reset."""
    found = re.search(r"^VmHWM:\s*(\d+)", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _reset_high_water() -> bool:
    """Begin the system's record of this process's largest resident set anew; False where it has none."""
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
