"""Room on the disk: what is there already needs none, and every stage asks for its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.core.errors import ResourceError
from compressor.pipeline import running
from compressor.pipeline.running import require_disk
from compressor.pipeline.steps import STAGES
from compressor.planning.disk import CONVERTED, DiskUse
from compressor.planning.restart import redo_in_run
from compressor.runs.artifact import ARTIFACT_FILE

USES = (
    DiskUse(stage="prune", where=CONVERTED, num_bytes=400),
    DiskUse(stage="prune", where="stages/prune", num_bytes=100),
    DiskUse(stage="distill", where="stages/distill", num_bytes=100, temporary_bytes=1000),
    DiskUse(stage="export", where="student", num_bytes=100),
)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    room = {"bytes": 0}
    monkeypatch.setattr(running, "free_disk_bytes", lambda _path: room["bytes"])
    return room


def put(directory: Path, num_bytes: int, *, finished: bool) -> None:
    directory.mkdir(parents=True)
    (directory / "weights").write_bytes(b"0" * num_bytes)
    if finished:
        (directory / ARTIFACT_FILE).touch()


def needs(free: dict[str, int], out_dir: Path, *, restart: frozenset[str] = frozenset()) -> int:
    """The fewest free bytes that are enough."""
    for number in range(0, 2000, 50):
        free["bytes"] = number
        try:
            require_disk(USES, out_dir, restart=restart)
        except ResourceError:
            continue
        return number
    raise AssertionError("nothing is enough")


def test_only_what_is_missing_needs_room(free: dict[str, int], tmp_path: Path) -> None:
    assert needs(free, tmp_path) == 1600
    put(tmp_path / "stages" / "model-0123-bfloat16-v2", 400, finished=True)
    assert needs(free, tmp_path) == 1200
    put(tmp_path / "stages" / "prune", 90, finished=True)
    put(tmp_path / "stages" / "distill.partial", 500, finished=False)
    assert needs(free, tmp_path) == 600
    put(tmp_path / "stages" / "distill", 100, finished=True)
    put(tmp_path / "student", 100, finished=True)
    assert needs(free, tmp_path) == 0


def test_what_is_discarded_makes_room(free: dict[str, int], tmp_path: Path) -> None:
    put(tmp_path / "stages" / "model-0123-bfloat16-v2", 400, finished=True)
    for name in ("stages/prune", "stages/distill", "student"):
        put(tmp_path / name, 100, finished=True)
    assert needs(free, tmp_path, restart=frozenset({"distill", "export"})) == 1000


@pytest.mark.parametrize(
    ("stage", "directory", "step"),
    [
        ("reconstruct", "stages/reconstruct", "reconstruct"),
        ("reconstruct", "stages/reconstruct-sparse", "reconstruct-sparse"),
        ("prune-masks", "stages/prune", "prune"),
        ("reconstruct", "stages/cut-2-reconstruct", "interleave"),
        ("prune", "stages/cut-1-prune", "interleave"),
        ("search-trial", "stages/search-2x64x128x4", "search"),
        ("export-onnx", "stages/teacher-onnx", "bench"),
    ],
)
def test_what_is_made_again_is_named_as_restart_from_takes_it(stage: str, directory: str, step: str) -> None:
    assert redo_in_run(stage, Path(directory)).endswith(f"--restart-from {step}")
    assert step in STAGES
