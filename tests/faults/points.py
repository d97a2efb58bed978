"""Which moments of a program a fault can strike, enumerated from what it did undisturbed."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from tests.faults.watch import CREATE, GROWING, LINK, MKDIR, REMOVE, RENAME, WRITE, Change

# Names of chance: Python's and Rust's temporary files, curves with their time and host, random suffixes.
_CHANCE = (
    (re.compile(r"\.?tmp[A-Za-z0-9_]{6,8}(?=$|[./])"), "tmp*"),
    (re.compile(r"events\.out\.tfevents[^/]*"), "events*"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "hex*"),
)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Point:
    """Before the change of a kind and path that happens for the so-many-th time."""

    kind: str
    path: str
    target: str
    occurrence: int

    def __str__(self) -> str:
        to = f" to {self.target}" if self.target else ""
        return f"{self.kind} {self.path}{to} ({self.occurrence})"


class Counting:
    """Tells which point a change is, when the program's changes are shown to it one after the other."""

    def __init__(self, relative: Callable[[str], str | None]) -> None:
        self._relative = relative
        self._seen: Counter[tuple[str, str, str]] = Counter()

    def point(self, change: Change) -> Point | None:
        """None for what is not below the watched directories."""
        path = self._relative(change.path)
        if path is None:
            return None
        target = self._relative(change.target) or "" if change.target else ""
        key = (change.kind, plain_name(path), plain_name(target))
        self._seen[key] += 1
        return Point(*key, self._seen[key])


def plain_name(path: str) -> str:
    """A path without what is chance in it."""
    for pattern, instead in _CHANCE:
        path = pattern.sub(instead, path)
    return path


def kill_points(trace: Sequence[Point]) -> list[Point]:
    """Every rename, removal, creation and link, and the first and the last write of each file."""
    firsts, lasts = _ends_of_writing(trace)
    structural = (RENAME, REMOVE, LINK, MKDIR, CREATE)
    wanted = {point for point in trace if point.kind in structural} | firsts | lasts
    return [point for point in trace if point in wanted]


def disk_points(trace: Sequence[Point]) -> list[Point]:
    """Where room can be missing: every creation, and of each file the first, a middle and the last write."""
    firsts, lasts = _ends_of_writing(trace)
    middles = {writes[len(writes) // 2] for writes in _writings(trace)}
    created = {point for point in trace if point.kind in GROWING and point.kind != WRITE}
    wanted = firsts | middles | lasts | created
    return [point for point in trace if point in wanted]


def _ends_of_writing(trace: Sequence[Point]) -> tuple[set[Point], set[Point]]:
    writings = _writings(trace)
    return {writes[0] for writes in writings}, {writes[-1] for writes in writings}


def _writings(trace: Sequence[Point]) -> list[list[Point]]:
    """The writes of each file, of a path that is made several times apart for each."""
    finished: list[list[Point]] = []
    current: dict[str, list[Point]] = {}
    for point in trace:
        if point.kind == CREATE and point.path in current:
            finished.append(current.pop(point.path))
        if point.kind == WRITE:
            current.setdefault(point.path, []).append(point)
    return [*finished, *current.values()]


def spread(items: Iterable[Item], count: int | None, *, seed: int = 0) -> list[Item]:
    """So many of them, in their order: one by chance out of each of equal parts; all without a count."""
    known = list(items)
    if count is None or count >= len(known):
        return known
    chance = random.Random(seed)  # noqa: S311 - a sample
    edges = [round(index * len(known) / count) for index in range(count + 1)]
    return [known[chance.randrange(low, high)] for low, high in pairwise(edges)]
