"""SIGKILL, a full disk and a disk that cannot be written, at every point of a scenario."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

from tests.faults.ground import Ground, Outcome, Undisturbed, brief
from tests.faults.points import Point, disk_points, kill_points, spread
from tests.faults.program import KILLED, Decide, Kill, Verdict
from tests.faults.trees import Tree, difference, is_curve, key_of, put, take
from tests.faults.watch import GROWING, Change

KILL, DISK, READ_ONLY = "kill -9", "full disk", "read-only output"
RESOURCE_ERROR = 5
# Of the states that kills leave, every so-many-th is made by a real one too.
_REAL_EVERY = 8
# Of an unfinished training, what torch gives a number of chance to.
# Names of temporary files, and how fast a training was.
_OF_CHANCE = tuple(f"*/checkpoints*/*/{name}*" for name in (".metadata", "trainer_state.json", "complete"))


def kills(ground: Ground, found: Undisturbed, count: int | None = None) -> Iterator[Outcome]:
    """Continue, with the same command, from what a kill at each point would leave.

    The states are taken from one run, that waits at each point: a kill there leaves exactly what is there
    (system calls are whole). Every eighth is compared with what a real kill left. Equal states, such as
    before a file is made and before another process's temporary file is, are continued once.
    """
    points = spread(kill_points(found.trace), count)
    states, again = states_at(ground, found, points)
    if differs := found.differs(again):
        yield Outcome(scenario=found.scenario.name, fault=KILL, point="none", problem=f"twice: {differs}")
    missing = [point for point in points if point not in states and not is_curve(point.path)]
    for point in missing:
        yield _outcome(found, KILL, point, "this point did not come again")
    by_key: dict[str, str] = {}
    for number, (point, state) in enumerate(states.items()):
        problem = _real_kill(ground, found, point, state) if number % _REAL_EVERY == 0 else ""
        key = key_of(state)
        if key not in by_key:
            by_key[key] = _continued(ground, found, state)
        yield _outcome(found, KILL, point, problem or by_key[key])


def states_at(ground: Ground, found: Undisturbed, points: Sequence[Point]) -> tuple[dict[Point, Tree], Tree]:
    """What is there right before each of these points of an undisturbed run, and when it has ended."""
    wanted, states = set(points), {}

    def at(_rank: int, point: Point, _change: Change) -> Verdict:
        if point in wanted:
            states[point] = take(ground.work)
        return None

    put(ground.work, found.start)
    done = ground.run(found.scenario.words, ground.watching(at))
    assert done.code == 0, done.stderr
    return states, take(ground.work)


def _real_kill(ground: Ground, found: Undisturbed, at_point: Point, state: Tree) -> str:
    def at(_rank: int, point: Point, _change: Change) -> Verdict:
        return Kill() if point == at_point else None

    put(ground.work, found.start)
    done = ground.run(found.scenario.words, ground.watching(at))
    if done.code != KILLED:
        return f"not killed, but ended with {done.code}"
    measured = (*found.scenario.measured, *_OF_CHANCE)
    differs = difference(take(ground.work), state, measured=measured)
    return f"a real kill leaves something else: {differs}" if differs else ""


def _continued(ground: Ground, found: Undisturbed, state: Tree) -> str:
    """What is wrong when the same command goes on from a state."""
    put(ground.work, state)
    done = ground.run(found.scenario.words)
    if done.code != 0:
        return f"the same command ends with {done.code}: {brief(done.stderr)}"
    return found.differs(take(ground.work)) or ("processes are left" if done.left else "")


def full_disks(ground: Ground, found: Undisturbed, count: int | None = None) -> Iterator[Outcome]:
    """From a point on nothing more can be written: one message and exit 5; then there is room again."""
    for at_point in spread(disk_points(found.trace), count):
        disk = _Disk(at_point)
        problem = _refused(ground, found, ground.watching(disk.at), disk)
        yield _outcome(found, DISK, at_point, problem)


class _Disk:
    """Full from a point on."""

    def __init__(self, full_at: Point) -> None:
        self._full_at, self.is_full = full_at, False

    def at(self, _rank: int, point: Point, change: Change) -> Verdict:
        self.is_full = self.is_full or point == self._full_at
        return errno.ENOSPC if self.is_full and change.kind in GROWING else None


def read_only(ground: Ground, found: Undisturbed, _count: int | None = None) -> Iterator[Outcome]:
    """Nothing can be changed: exit 5, and nothing has; finished work may also be found as it is."""

    def at(_rank: int, _point: Point, _change: Change) -> Verdict:
        return errno.EROFS

    for name, state in (("from the beginning", found.start), ("finished work", found.result)):
        put(ground.work, state)
        done = ground.run(found.scenario.words, ground.watching(at))
        is_finished = state is found.result
        problem = ""
        if done.code != RESOURCE_ERROR and not (is_finished and done.code == 0):
            problem = f"exit {done.code}: {brief(done.stderr)}"
        elif done.code and (done.errors != 1 or "Traceback" in done.stderr):
            problem = f"not one message: {brief(done.stderr)}"
        problem = problem or difference(take(ground.work), state)
        yield Outcome(scenario=found.scenario.name, fault=READ_ONLY, point=name, problem=problem)


def _refused(ground: Ground, found: Undisturbed, decide: Decide, disk: _Disk) -> str:
    """What is wrong with how a command ends on a full disk, and goes on afterwards."""
    put(ground.work, found.start)
    done = ground.run(found.scenario.words, decide)
    if not disk.is_full:
        return "this point did not come again"
    if done.code == 0:  # what could not be written was nothing that is needed
        return found.differs(take(ground.work))
    if done.code != RESOURCE_ERROR:
        return f"exit {done.code}, not 5: {brief(done.stderr)}"
    if done.errors != 1 or "Traceback" in done.stderr:
        return f"not one message: {brief(done.stderr)}"
    problem = _continued(ground, found, take(ground.work))
    return f"when there is room again: {problem}" if problem else ""


def _outcome(found: Undisturbed, fault: str, point: Point, problem: str) -> Outcome:
    return Outcome(scenario=found.scenario.name, fault=fault, point=str(point), problem=problem)
