"""Files that somebody or something harmed, and a clock that runs backwards."""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from tests.faults.ground import Ground, Outcome, Undisturbed, brief
from tests.faults.points import kill_points, spread
from tests.faults.strikes import states_at
from tests.faults.trees import Tree, content_of, put, take, with_file

FINISHED, UNFINISHED = "harmed file", "harmed file, unfinished"
CLOCK, RECIPE = "clock backwards", "recipe cut off"
_REFUSALS = (2, 8)
_NOT_HARMED = ("*tensorboard*", "*.lock")
_DAY_S = 86_400.0


def harmed_finished(ground: Ground, found: Undisturbed, count: int | None = None) -> Iterator[Outcome]:
    """Each file of finished work, cut in half and with one bit changed; then the same command again."""
    for name, way, tree in spread(_harmed(found.result, "*"), count):
        yield _asked_again(ground, found, tree, fault=FINISHED, point=f"{name}, {way}")


def harmed_unfinished(ground: Ground, found: Undisturbed, count: int | None = None) -> Iterator[Outcome]:
    """The same for the files of unfinished stages, in states that kills leave."""
    points = spread(kill_points(found.trace), count)
    for point, state in states_at(ground, found, points)[0].items():
        for name, way, tree in _harmed(state, "*.partial/*"):
            where = f"{name}, {way}, before {point}"
            yield _asked_again(ground, found, tree, fault=UNFINISHED, point=where)


def _harmed(tree: Tree, pattern: str) -> Iterator[tuple[str, str, Tree]]:
    for name, entry in sorted(tree.items()):
        is_passed_over = any(fnmatchcase(name, skipped) for skipped in _NOT_HARMED)
        if entry.kind != "file" or is_passed_over or not fnmatchcase(name, pattern):
            continue
        content = content_of(entry)
        if content:
            yield name, "cut", with_file(tree, name, content[: len(content) // 2])
            changed = bytearray(content)
            changed[len(content) * 2 // 3] ^= 1
            yield name, "a bit changed", with_file(tree, name, bytes(changed))


def _asked_again(ground: Ground, found: Undisturbed, tree: Tree, *, fault: str, point: str) -> Outcome:
    """Harm is refused, and then nothing was changed, or made good: never used."""
    put(ground.work, tree)
    done = ground.run(found.scenario.words)
    if done.code == 0:
        problem = found.differs(take(ground.work))
    elif done.code not in _REFUSALS or done.errors != 1 or "Traceback" in done.stderr:
        problem = f"exit {done.code}: {brief(done.stderr)}"
    else:
        problem = ""
    return Outcome(scenario=found.scenario.name, fault=fault, point=point, problem=problem)


def clock_backwards(ground: Ground, found: Undisturbed, count: int | None = None) -> Iterator[Outcome]:
    """Continue what was written in a year, while every look at the clock shows an earlier day."""
    points = spread(kill_points(found.trace), count)
    for point, state in states_at(ground, found, points)[0].items():
        put(ground.work, state, from_the_future=True)
        done = ground.run(found.scenario.words, patch=run_backwards)
        problem = f"exit {done.code}: {brief(done.stderr)}" if done.code else found.differs(take(ground.work))
        yield Outcome(scenario=found.scenario.name, fault=CLOCK, point=str(point), problem=problem)


def run_backwards() -> None:
    """Let the clock of this process go back a day at every look; what measures spans is another clock."""
    looks, start, day = iter(range(10**9)), time.time(), dt.timedelta(days=1)

    class Backwards(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Backwards:
            shown: Backwards = cls.fromtimestamp(start, tz) - next(looks) * day
            return shown

    time.time = lambda: start - next(looks) * _DAY_S
    time.time_ns = lambda: int(time.time() * 1e9)
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("compressor", "exporters", "bench"):
            for attribute, value in list(vars(module).items()):
                if value is dt.datetime:
                    setattr(module, attribute, Backwards)


def cut_recipes(ground: Ground, found: Undisturbed, count: int | None = None) -> Iterator[Outcome]:
    """The recipe cut off after every character: planned as what it still says, or refused in one message.

    What cannot be planned cannot be run either, and the finished run stays as it is.
    """
    words = list(found.scenario.words)
    at = words.index("--config") + 1
    whole = Path(str(words[at]))
    text = whole.read_text(encoding="utf-8")
    for length in spread(range(1, len(text)), count):
        cut = whole.with_name("cut.yaml")
        cut.write_text(text[:length], encoding="utf-8")
        problem, planned = "", ground.run(("plan", "--config", cut))
        if planned.code not in (0, 2) or "Traceback" in planned.stderr:
            problem = f"plan ends with {planned.code}: {brief(planned.stderr)}"
        elif planned.code == 2:
            put(ground.work, found.result)
            done = ground.run((*words[:at], cut, *words[at + 1 :]))
            if done.code != planned.code:
                problem = f"run ends with {done.code}: {brief(done.stderr)}"
            problem = problem or found.differs(take(ground.work))
        point = f"after {length} characters"
        yield Outcome(scenario=found.scenario.name, fault=RECIPE, point=point, problem=problem)
