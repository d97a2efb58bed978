"""The long measurements of `make results`: what can be wrong with them before hours are spent."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.models.presets import PRESETS
from compressor.planning.target import resolve_shape
from tests.performance import kept, results
from tests.performance.student_results import PARTS


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
