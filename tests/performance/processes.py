"""Long measurements two at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_parallel(work: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
    """Two tasks at a time, each in a process of one thread: faster than one after the other with two."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, tasks))
