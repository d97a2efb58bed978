"""The long measurements of `make results`: what can be wrong with them before hours are spent."""

from __future__ import annotations

import json
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from compressor.models.presets import PRESETS
from compressor.planning.target import resolve_shape
from tests.performance import kept, results, student_results
from tests.performance.student_results import PARTS, Student


def test_measured_shapes_are_possible() -> None:
    teacher = PRESETS["smollm2-135m"].dims
    shapes = [
        student.words[student.words.index("--shape") + 1]
        for students in PARTS.values()
        for student in students.values()
        if "--shape" in student.words
    ]
    for shape in shapes:
        wanted = {name: int(size) for name, size in (pair.split("=") for pair in shape.split(","))}
        assert resolve_shape(teacher, wanted).student == teacher.with_shape(**wanted)
    assert len(shapes) > 20


def test_what_is_found_stays_until_its_result_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where writing fails; the seconds are of all calls together."""
    clock = [0.0]
    monkeypatch.setattr(kept, "BUILD", tmp_path)
    monkeypatch.setattr(kept, "monotonic", lambda: clock[0])
    calls: list[dict[str, int]] = []

    def measure() -> dict[str, int]:
        calls.append(dict(kept.read_kept("perf")))
        clock[0] += 100
        kept.keep("perf", {"half": 1})
        if len(calls) == 1:
            raise KeyboardInterrupt
        return {"whole": 2}

    written: list[object] = []

    def write(name: str, command: str, data: object, **facts: object) -> None:
        if len(calls) == 2:
            raise OSError("full disk")
        written.append((name, command, data, facts["seconds"]))

    monkeypatch.setattr(results, "MEASUREMENTS", {"perf": measure})
    monkeypatch.setattr(results, "write_result", write)
    for stopped in (KeyboardInterrupt, OSError):
        with pytest.raises(stopped):
            results.record("perf", num_seeds=1)
        assert kept.read_kept("perf") == {"half": 1}
    results.record("perf", num_seeds=1)
    assert calls == [{}, {"half": 1}, {"half": 1}]
    assert written == [("perf", "python -m tests.performance.results perf", {"whole": 2}, 300)]
    assert not (tmp_path / "perf").exists()


LONG_AGO, LATER = "2001-02-03", "2002-03-04"
MACHINE = {"cpu": "another CPU"}


class Measured:
    """Stands for the commands: counts the cuts by their importance and seed, and may be interrupted."""

    def __init__(self) -> None:
        self.cuts: list[str] = []
        self.stops_at = -1

    def __call__(self, *words: str) -> dict[str, Any]:
        if words[0] == "evaluate":
            return {"models": {"cut": {"perplexity": 7.0}}}
        if len(self.cuts) == self.stops_at:
            raise KeyboardInterrupt
        self.cuts.append(f"{words[words.index('--importance') + 1]} {words[words.index('--seed') + 1]}")
        return {"num_parameters": 5, "details": {}}


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """A part of three students: one recorded, with a day for one seed, one by another command, one new."""
    students = {
        name: Student(words=("prune", "--importance", name), calibration=())
        for name in ("same", "changed", "new")
    }
    entries = {"same": [{"perplexity": 1.0}, {"perplexity": 2.0, "date": LATER}], "changed": [{}, {}]}
    commands = {"same": ["prune --importance same"], "changed": ["prune --importance changed --older"]}
    data = {"students": entries, "commands": commands}
    document = {"date": LONG_AGO, "hardware": MACHINE, "data": data}
    (tmp_path / "part.json").write_text(json.dumps(document))
    monkeypatch.setitem(PARTS, "part", students)
    monkeypatch.setattr(student_results, "RESULTS", tmp_path)
    monkeypatch.setattr(kept, "BUILD", tmp_path / "build")
    return entries


def is_of_today(entry: dict[str, Any]) -> bool:
    """Also where midnight passes on the way."""
    return 0 <= (datetime.now(timezone.utc).date() - date.fromisoformat(entry["date"])).days <= 1


@pytest.mark.usefixtures("recorded")
def test_students_are_measured_anew_with_the_day() -> None:
    command = Measured()
    found = student_results.run_students("part", command, num_seeds=2)["students"]
    assert command.cuts == [f"{name} {seed}" for seed in range(2) for name in ("same", "changed", "new")]
    assert all(is_of_today(entry) for entries in found.values() for entry in entries)


def test_what_is_taken_over_keeps_its_day_and_machine(recorded: dict[str, list[dict[str, Any]]]) -> None:
    command = Measured()
    found = student_results.run_students("part", command, num_seeds=2, keeps_recorded=True)["students"]
    assert command.cuts == ["changed 0", "new 0", "changed 1", "new 1"]
    days = (LONG_AGO, LATER)
    assert found["same"] == [
        {**entry, "date": day, "hardware": MACHINE} for entry, day in zip(recorded["same"], days, strict=True)
    ]
    new = [*found["changed"], *found["new"]]
    assert all(is_of_today(entry) and "hardware" not in entry for entry in new)


@pytest.mark.usefixtures("recorded")
def test_an_interrupted_measurement_goes_on_with_what_it_measured_itself() -> None:
    command = Measured()
    command.stops_at = 1
    with pytest.raises(KeyboardInterrupt):
        student_results.run_students("part", command, num_seeds=1, keeps_recorded=True)
    command.stops_at = -1
    student_results.run_students("part", command, num_seeds=1)
    assert command.cuts == ["changed 0", "same 0", "new 0"]


def test_the_command_of_a_result_says_whether_students_were_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    commands: list[str] = []

    def run(_part: str, _command: object, *, num_seeds: int, keeps_recorded: bool) -> dict[str, Any]:
        assert num_seeds == 2
        asked.append(keeps_recorded)
        return {"students": {}}

    monkeypatch.setattr(kept, "BUILD", tmp_path)
    monkeypatch.setattr(results, "run_students", run)
    monkeypatch.setattr(results, "write_result", lambda _name, command, *_, **__: commands.append(command))
    monkeypatch.setattr(results, "write_tables", lambda: None)
    for words in (["depth"], ["depth", "--keep"]):
        monkeypatch.setattr("sys.argv", ["results", *words])
        results.main()
    assert asked == [False, True]
    start = "python -m tests.performance.results depth --seeds 2"
    assert commands == [start, f"{start} --keep"]
