"""Not alone: a second run in the directory at every step of the first, and one of two processes killed."""

from __future__ import annotations

from collections.abc import Iterator

from compressor.api.execution import SCRATCH
from tests.faults.ground import Ground, Outcome, Undisturbed, brief
from tests.faults.points import Point, spread
from tests.faults.program import KILLED, Done, Kill, Running, Verdict
from tests.faults.trees import put, take
from tests.faults.watch import MKDIR, REMOVE, RENAME, Change

SECOND, ONE_OF_TWO = "second run", "one of two killed"
USAGE_ERROR = 2
# A second run is refused at once; one that waits is a fault. But the conversion of a GGUF file is for every
# command that reads it, into whatever directory: who comes second waits for it, and is refused afterwards.
_CONVERSIONS = f"{SCRATCH}/"
_REFUSED_WITHIN_S = 60.0
_OTHERS_END_WITHIN_S = 60.0


def second_runs(ground: Ground, found: Undisturbed, count: int | None = None) -> Iterator[Outcome]:
    """The same command once more while the first is about to rename, to remove or to make a directory."""
    points = [point for point in found.trace if point.kind in (RENAME, REMOVE, MKDIR)]
    for at_point in spread(points, count):
        begun: list[Running] = []
        second: list[Done] = []

        def at(
            _rank: int,
            point: Point,
            _change: Change,
            at_point: Point = at_point,
            begun: list[Running] = begun,
            second: list[Done] = second,
        ) -> Verdict:
            if point == at_point and not begun:
                begun.append(Running(found.scenario.words, ground.place, name="b"))
                if not point.path.startswith(_CONVERSIONS):
                    second.append(begun[0].finish(timeout_s=_REFUSED_WITHIN_S))
            return None

        put(ground.work, found.start)
        first = ground.run(found.scenario.words, ground.watching(at))
        if begun and not second:
            second.append(begun[0].finish(timeout_s=_REFUSED_WITHIN_S))
        problem = _of_two(first, *second) or found.differs(take(ground.work))
        yield Outcome(scenario=found.scenario.name, fault=SECOND, point=str(at_point), problem=problem)


def _of_two(first: Done, second: Done | None = None) -> str:
    """One may be refused; whoever is not does its work."""
    if second is None:
        return "this point did not come again"
    if second.left:
        return "the second waits, or leaves processes"
    for name, done in (("first", first), ("second", second)):
        if done.code not in (0, USAGE_ERROR) or "Traceback" in done.stderr:
            return f"the {name} ends with {done.code}: {brief(done.stderr)}"
    return "" if 0 in (first.code, second.code) else "both were refused"


def one_of_two(ground: Ground, found: Undisturbed, count: int | None = None) -> Iterator[Outcome]:
    """SIGKILL of either process where the main one is about to change a file.

    The other must end by itself: nothing here ends it, as `torchrun` would. Then both begin again.
    """
    words, processes = found.scenario.words, found.scenario.processes
    for victim in range(processes):
        for at_point in spread(found.trace, count, seed=victim):

            def at(
                rank: int, point: Point, _change: Change, at_point: Point = at_point, victim: int = victim
            ) -> Verdict:
                return Kill(victim) if rank == 0 and point == at_point else None

            put(ground.work, found.start)
            done = ground.run(words, ground.watching(at), processes=processes)
            problem = _of_killed(done, victim)
            if not problem:
                again = ground.run(words, processes=processes)
                problem = found.differs(take(ground.work))
                if any(again.codes):
                    problem = f"the same command ends with {again.codes}: {brief(again.stderr)}"
            where = f"rank {victim} before {at_point}"
            yield Outcome(scenario=found.scenario.name, fault=ONE_OF_TWO, point=where, problem=problem)


def _of_killed(done: Done, victim: int) -> str:
    others = [code for rank, code in enumerate(done.codes) if rank != victim]
    if done.codes[victim] != KILLED:
        return f"not killed, but ended with {done.codes}"
    if done.left or done.waited_s > _OTHERS_END_WITHIN_S:
        return f"the other goes on for {done.waited_s:.0f} s"
    return f"the other was killed too: {others}" if KILLED in others else ""
