"""A kind's examples for as long as its budget lasts, in a process that may be killed by any of them."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import psutil
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.examine import Examiner, Fault
from tests.fuzz.guard import CPU_SECONDS, TOKEN, TOKEN_VARIABLES, Guard, limit_memory
from tests.fuzz.kind import Example, Kind, Seed, Workspace, drawn_example

_BATCH = 200
LEAST_EXAMPLES = 20  # however slow the machine is
_SHRINKS = 150
_HUNG_CPU_SECONDS, _HUNG_SECONDS = 6 * CPU_SECONDS, 60 * CPU_SECONDS
_TALLY, _BEGUN = "tally.json", "begun"


@dataclass(kw_only=True)
class Tally:
    """What came of a kind's examples.

    Attributes:
        exit_codes: Examples by the worst exit code of their commands; 0 is accepted.
        faults: What went wrong, each once: signature, sentence and the files that it takes, by name.
    """

    kind: str
    seconds: float = 0.0
    examples: int = 0
    exit_codes: Counter[int] = field(default_factory=Counter)
    faults: list[dict[str, Any]] = field(default_factory=list)

    @property
    def signatures(self) -> set[str]:
        """Faults that are known already."""
        return {fault["signature"] for fault in self.faults}


class _OverError(KeyboardInterrupt):
    """The budget is spent; Hypothesis lets an interruption through."""


def hunt(kind: Kind, seeds: list[Seed], *, seconds: float, seed: int, keep: Path | None = None) -> Tally:
    """Read examples for so many seconds; what fails is laid into a directory of `keep`, if one is given."""
    tally = Tally(kind=kind.name)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        workspace = Workspace(root=Path(name).resolve() / "work")
        workspace.root.mkdir()
        left = seconds
        while True:
            known, started = tally.signatures, time.monotonic()
            died = _in_child(kind, seeds, Path(name), workspace, seconds=left, seed=seed, known=known)
            _add_(tally, Path(name) / _TALLY)
            seed += 1_000_000
            if died is None:
                return tally
            tally.seconds += time.monotonic() - started
            if died not in tally.signatures:
                tally.faults.append({"signature": died, "what": died, "files": {}})
                _keep(workspace.input, keep, kind.name, len(tally.faults))
            if (left := seconds - tally.seconds) <= 0:
                return tally


def _in_child(
    kind: Kind,
    seeds: list[Seed],
    place: Path,
    workspace: Workspace,
    *,
    seconds: float,
    seed: int,
    known: set[str],
) -> str | None:
    """Run a part of the campaign in a child; what ended it early, or None."""
    (place / _TALLY).unlink(missing_ok=True)
    begun = place / _BEGUN
    begun.touch()
    child = multiprocessing.get_context("fork").Process(
        target=_work, args=(kind, seeds, place, workspace, seconds, seed, known)
    )
    child.start()
    last, used = 0.0, 0.0
    while child.is_alive():
        child.join(0.2)
        with contextlib.suppress(psutil.NoSuchProcess):
            now = sum(psutil.Process(child.pid).cpu_times()[:2])
            if begun.stat().st_mtime > last:
                last, used = begun.stat().st_mtime, now
            if now - used > _HUNG_CPU_SECONDS or time.time() - last > _HUNG_SECONDS:
                child.kill()
                child.join()
                return "hangs"
    if child.exitcode == 1:
        raise RuntimeError(f"the reader of {kind.name} failed by itself")
    return None if child.exitcode == 0 else f"ends the process: {child.exitcode}"


def _work(
    kind: Kind,
    seeds: list[Seed],
    place: Path,
    workspace: Workspace,
    seconds: float,
    seed: int,
    known: set[str],
) -> None:
    sys.dont_write_bytecode = True
    os.chdir(workspace.root)
    os.environ.update(dict.fromkeys(TOKEN_VARIABLES, TOKEN), HOME=str(workspace.root / "home"))
    os.environ["TMPDIR"] = tempfile.tempdir = str(workspace.root / "tmp")
    writable = [workspace.run, workspace.root / "tmp", *([workspace.input] if kind.writes_input else [])]
    guard = Guard(root=workspace.root, writable=tuple(writable), programs=kind.programs)
    examiner = Examiner(kind=kind, seeds=seeds, workspace=workspace, guard=guard)
    tally = Tally(kind=kind.name)
    for number in range(len(seeds)):  # also imports what is imported late
        for way in range(4 if number == 0 else 1):
            (place / _BEGUN).touch()
            code, fault = examiner.examine(Example(seed=number, changed={}, way=way))
            if code or fault:
                said = fault.what if fault else examiner.said
                raise AssertionError(f"{kind.name}: seed {number} is refused by way {way}: {said}")
    limit_memory()
    guard.install()
    started = time.monotonic()
    deadline = started + seconds
    while time.monotonic() < deadline or tally.examples < LEAST_EXAMPLES:
        _batch(
            examiner,
            tally,
            seed=seed,
            deadline=deadline,
            known=known | tally.signatures,
            begun=place / _BEGUN,
        )
        tally.seconds = time.monotonic() - started
        _write(place / _TALLY, tally)
        seed += 1


def _batch(
    examiner: Examiner, tally: Tally, *, seed: int, deadline: float, known: set[str], begun: Path
) -> None:
    """Examples until one fails in a new way, and then smaller ones."""
    failing: list[tuple[Example, Fault]] = []
    num_after = 0

    @hypothesis.seed(seed)
    @settings(
        max_examples=_BATCH,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        nonlocal num_after
        num_after += bool(failing)
        is_over = time.monotonic() > deadline and tally.examples >= LEAST_EXAMPLES
        if is_over or num_after > _SHRINKS:
            raise _OverError
        example = drawn_example(data.draw, examiner.seeds)
        begun.touch()
        code, fault = examiner.examine(example)
        tally.examples += 1
        tally.exit_codes[code] += 1
        if fault is not None and fault.signature not in known:
            if not failing or fault.signature == failing[0][1].signature:
                failing.append((example, fault))
            raise AssertionError(fault.signature)

    try:
        attempt()
    except _OverError:
        pass
    except (AssertionError, hypothesis.errors.HypothesisException):
        if not failing:
            raise
    if failing:
        example, fault = min(failing, key=lambda one: sum(map(len, one[0].changed.values())))
        files = {name: content.hex() for name, content in example.changed.items()}
        facts = {"seed": example.seed, "way": example.way, "repaired": example.repaired}
        tally.faults.append({**asdict(fault), **facts, "files": files})


def _write(path: Path, tally: Tally) -> None:
    path.write_text(
        json.dumps({**asdict(tally), "exit_codes": list(tally.exit_codes.items())}), encoding="utf-8"
    )


def _add_(tally: Tally, path: Path) -> None:
    """Add what a child left."""
    if not path.is_file():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    tally.examples += found["examples"]
    tally.seconds += found["seconds"]
    tally.exit_codes.update(dict(found["exit_codes"]))
    tally.faults += found["faults"]


def _keep(directory: Path, keep: Path | None, kind: str, number: int) -> None:
    if keep is not None and directory.is_dir():
        shutil.copytree(directory, keep / f"{kind}-{number}", dirs_exist_ok=True)
