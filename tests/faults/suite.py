"""All scenarios with all faults, by one or two workers, in full or as a sample."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.faults.company import ONE_OF_TWO, SECOND, one_of_two, second_runs
from tests.faults.ground import Ground, Outcome, Scenario, Undisturbed
from tests.faults.harm import (
    CLOCK,
    FINISHED,
    RECIPE,
    UNFINISHED,
    clock_backwards,
    cut_recipes,
    harmed_finished,
    harmed_unfinished,
)
from tests.faults.network import LOST, Hub, lost_networks
from tests.faults.scenarios import DOWNLOAD, Inputs, scenarios
from tests.faults.strikes import DISK, KILL, READ_ONLY, full_disks, kills, read_only

Plant = Callable[[Ground, Undisturbed, int | None], Iterator[Outcome]]
FAULTS: dict[str, Plant] = {
    KILL: kills,
    DISK: full_disks,
    READ_ONLY: read_only,
    SECOND: second_runs,
    ONE_OF_TWO: one_of_two,
    FINISHED: harmed_finished,
    UNFINISHED: harmed_unfinished,
    CLOCK: clock_backwards,
    RECIPE: cut_recipes,
}
ALL = (*FAULTS, LOST)
# How many points of each fault; None is all. Of the last ones a spread: each is many commands.
FULL: dict[str, int | None] = {
    **dict.fromkeys((KILL, DISK, READ_ONLY, SECOND, FINISHED, LOST)),
    ONE_OF_TWO: 12,
    UNFINISHED: 4,
    CLOCK: 4,
    RECIPE: 60,
}
SAMPLE: dict[str, int | None] = {KILL: 4, DISK: 1, SECOND: 1, FINISHED: 1, READ_ONLY: None}
# What the sample takes of scenarios: those of a second or less, and of two of them every fault.
SAMPLED = ("prune", "distill", "quantize", "export huggingface", "export tensorrt-llm", "clean")
_WHOLE = "run"
# Deletes what is large, and does not look into what stays.
_READS_NOTHING = "clean"


@dataclass(kw_only=True)
class Setting:
    """What is planted: how many points of which fault, into which scenarios."""

    inputs: Inputs
    root: Path
    hub: Hub
    cache: Path
    counts: Mapping[str, int | None]


_setting: Setting


def faults_of(scenario: Scenario, counts: Mapping[str, int | None]) -> list[str]:
    """The faults that can strike a scenario, of those that are asked for."""
    if scenario.processes > 1:
        possible = [ONE_OF_TWO]
    elif scenario.name == DOWNLOAD:
        possible = [LOST]
    else:
        possible = [name for name in FAULTS if name not in (ONE_OF_TWO, RECIPE)]
        if scenario.name == _READS_NOTHING:
            possible = [name for name in possible if name not in (FINISHED, UNFINISHED)]
        possible += [RECIPE] if scenario.name == _WHOLE else []
    return [name for name in possible if name in counts]


def run_suite(
    setting: Setting, chosen: Callable[[str], bool], *, workers: int, say: Callable[[str], None]
) -> list[Outcome]:
    """Plant every fault into the scenarios whose names are chosen; says how each went."""
    global _setting  # noqa: PLW0603 - forked workers find it here
    _setting = setting
    outcomes: list[Outcome] = []
    known = [scenario for scenario in scenarios(setting.inputs, Path("work")) if chosen(scenario.name)]
    setting.inputs.make(Ground(setting.root / "first"), known)
    tasks = [(one.name, fault) for one in known for fault in faults_of(one, setting.counts)]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        for name, fault, found, seconds in pool.imap_unordered(_play, tasks):
            outcomes += found
            good = sum(outcome.behaved for outcome in found)
            say(f"{name}, {fault}: {good} of {len(found)} in {seconds:.0f} s")
            for outcome in found:
                if not outcome.behaved:
                    say(f"  {outcome.point}: {outcome.problem}")
    order = {task: number for number, task in enumerate(tasks)}
    return sorted(outcomes, key=lambda outcome: order[outcome.scenario, outcome.fault])


_found: dict[str, Undisturbed] = {}
_grounds: list[Ground] = []


def _play(task: tuple[str, str]) -> tuple[str, str, list[Outcome], float]:
    """One fault in one scenario, in a worker that keeps its ground and what it saw undisturbed."""
    name, fault = task
    started = time.monotonic()
    if not _grounds:
        number = multiprocessing.current_process().name.rpartition("-")[2]
        _grounds.append(Ground(_setting.root / f"worker-{number}"))
    (ground,) = _grounds
    try:
        if name not in _found:
            _found.clear()
            known = scenarios(_setting.inputs, ground.work)
            _found[name] = ground.undisturbed(next(one for one in known if one.name == name))
        count = _setting.counts[fault]
        if fault == LOST:
            outcomes = list(lost_networks(ground, _found[name], _setting.hub, _setting.cache, count))
        else:
            outcomes = list(FAULTS[fault](ground, _found[name], count))
    except AssertionError as error:
        outcomes = [Outcome(scenario=name, fault=fault, point="undisturbed", problem=str(error)[-400:])]
    return name, fault, outcomes, time.monotonic() - started
