"""Where a scenario is played: the directory that it changes, and the programs that are run in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.faults.points import Counting, Point
from tests.faults.program import Decide, Done, Place, Running, Verdict, Words, warm
from tests.faults.trees import Tree, difference, put, take
from tests.faults.watch import Change

_LAST_LINES = 3


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A command, the state that it begins in, and what of it is looked at.

    Attributes:
        words: The command line.
        begins_with: The command line whose result is there before; it runs once.
        measured: Patterns of files with times in them, of which only the presence is compared.
        is_whole: A run of several stages: what happens inside a stage's unfinished directory is left to
            the scenario of that stage.
        processes: How many work on it together.
    """

    name: str
    words: Words
    begins_with: Words | None = None
    measured: tuple[str, ...] = ()
    is_whole: bool = False
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one fault: where it struck, whether all behaved as it should, and what did not."""

    scenario: str
    fault: str
    point: str
    problem: str = ""

    @property
    def behaved(self) -> bool:
        return not self.problem


@dataclass(kw_only=True)
class Undisturbed:
    """A scenario without a fault: its first state, its changes in their order, and its result."""

    scenario: Scenario
    start: Tree
    trace: list[Point]
    result: Tree

    def differs(self, found: Tree) -> str:
        return difference(found, self.result, measured=self.scenario.measured)


def brief(stderr: str) -> str:
    """The end of what a program said, in one line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and "it/s]" not in line]
    return " | ".join(lines[-_LAST_LINES:])[:400]


class Ground:
    """Directories for one worker: `work` holds what a scenario changes."""

    def __init__(self, root: Path, *, environment: dict[str, str] | None = None) -> None:
        self.work, self._temporary, self._scratch = root / "work", root / "temporary", root / "scratch"
        for directory in (self.work, self._temporary, self._scratch):
            directory.mkdir(parents=True, exist_ok=True)
        self.place = Place(
            scratch=self._scratch, temporary=self._temporary, environment=dict(environment or {})
        )

    def start(self, words: Words, **options: Any) -> Running:
        for path in self._temporary.iterdir():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        return Running(words, self.place, **options)

    def run(self, words: Words, decide: Decide | None = None, **options: Any) -> Done:
        """Run a command to its end, and keep for the next what it imported."""
        done = self.start(words, **options).finish(decide)
        warm(self._scratch / "a-0.modules")
        return done

    def watching(self, at: Callable[[int, Point, Change], Verdict]) -> Decide:
        """Decide by points; what is changed elsewhere is let happen."""
        counting: dict[int, Counting] = {}

        def decide(rank: int, change: Change) -> Verdict:
            point = counting.setdefault(rank, Counting(self._relative)).point(change)
            return None if point is None else at(rank, point, change)

        return decide

    def undisturbed(self, scenario: Scenario) -> Undisturbed:
        """Play a scenario without a fault, after what it begins with.

        Raises:
            AssertionError: when the tool itself fails.
        """
        put(self.work, {})
        if scenario.begins_with is not None:
            done = self.run(scenario.begins_with)
            assert done.code == 0, f"{scenario.name} cannot begin: {done.stderr}"
        start, trace = take(self.work), []

        def keep(rank: int, point: Point, _: Change) -> Verdict:
            if rank == 0 and not (scenario.is_whole and _is_inside_a_stage(point)):
                trace.append(point)
            return None

        done = self.run(scenario.words, self.watching(keep), processes=scenario.processes)
        assert not any(done.codes), f"{scenario.name}: {done.stderr}"
        return Undisturbed(scenario=scenario, start=start, trace=trace, result=take(self.work))

    def _relative(self, path: str) -> str | None:
        for directory in (self.work, self._temporary):
            if path.startswith(f"{directory}/"):
                return path[len(str(directory)) + 1 :]
        return None


def _is_inside_a_stage(point: Point) -> bool:
    return fnmatchcase(point.path, "*.partial/*")
