from __future__ import annotations

import json
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from compressor.core.errors import ResourceError, UsageError, VerificationError
from compressor.runs.artifact import ModelArtifact
from compressor.runs.manifest import LOCK_FILE, MANIFEST_FILE, Manifest, open_run_directory
from compressor.runs.preflight_record import PreflightRecord
from compressor.runs.stage import StageOutcome


def opened(
    out_dir: Path, *, resume: bool = False, overwrite: bool = False
) -> AbstractContextManager[Manifest]:
    return open_run_directory(out_dir, resume=resume, overwrite=overwrite)


def refused(error: type[Exception], out_dir: Path, message: str | None = None, **how: bool) -> None:
    with pytest.raises(error, match=message), opened(out_dir, **how):
        pass


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A directory in which a run has begun."""
    with opened(tmp_path / "run") as manifest:
        manifest.update(warnings=("five",))
    return tmp_path / "run"


def read(run: Path) -> dict[str, object]:
    record: dict[str, object] = json.loads((run / MANIFEST_FILE).read_text(encoding="utf-8"))
    return record


def outcome(run: Path, *, skipped: bool, seconds: float) -> StageOutcome:
    artifact = ModelArtifact(
        path=run / "stages" / "prune",
        stage="prune",
        fingerprint="f",
        lineage=("source", "prune"),
        num_parameters=5,
    )
    return StageOutcome(artifact=artifact, skipped=skipped, seconds=seconds, warnings=("narrow",))


def test_second_run_continues_the_record(run: Path) -> None:
    with opened(run, resume=True) as manifest:
        assert manifest.record.warnings == ("five",)


def test_skipped_stage_keeps_its_figures(run: Path) -> None:
    with opened(run) as manifest:
        manifest.add_stage(outcome(run, skipped=False, seconds=7), where="stages/prune")
        manifest.add_stage(outcome(run, skipped=True, seconds=0), where="stages/prune")

    stages = read(run)["stages"]
    assert isinstance(stages, dict)
    assert stages["stages/prune"]["seconds"] == 7
    assert stages["stages/prune"]["warnings"] == ["narrow"]


def too_short(run: Path, *, finished: bool) -> None:
    """A run that is refused, before or after its first stage."""
    with opened(run) as manifest:
        (run / "stages" / "converted").mkdir(parents=True)
        if finished:
            manifest.add_stage(outcome(run, skipped=False, seconds=7), where="stages/prune")
        raise UsageError("too short")


@pytest.mark.parametrize("existed", [True, False])
def test_a_new_run_that_made_nothing_leaves_nothing(tmp_path: Path, existed: bool) -> None:
    if existed:
        (tmp_path / "run").mkdir()
    with pytest.raises(UsageError, match="too short"):
        too_short(tmp_path / "run", finished=False)

    assert list(tmp_path.rglob("*")) == ([tmp_path / "run"] if existed else [])


def test_a_run_that_made_something_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too short"):
        too_short(tmp_path / "run", finished=True)

    assert read(tmp_path / "run")["stages"]


def out_of_memory(run: Path, saved: Path) -> None:
    """A run whose first stage saves a checkpoint and ends."""
    with opened(run):
        saved.mkdir(parents=True)
        raise ResourceError("out of memory")


def test_a_saved_training_of_the_first_stage_stays(tmp_path: Path) -> None:
    out = tmp_path / "run"
    saved = out / "stages" / "prune.partial" / "masks" / "checkpoint-20"
    with pytest.raises(ResourceError, match="out of memory"):
        out_of_memory(out, saved)
    assert saved.is_dir()
    with opened(out, resume=True):
        pass


def test_overwrite_starts_anew(run: Path) -> None:
    (run / "student").mkdir()
    with opened(run, overwrite=True) as manifest:
        assert manifest.record.warnings == ()

    assert sorted(path.name for path in run.iterdir()) == [LOCK_FILE, MANIFEST_FILE]


@pytest.mark.parametrize("overwrite", [True, False])
def test_directory_of_others_is_refused_and_left_alone(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("mine")

    refused(UsageError, tmp_path, "in use", overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_nothing_to_resume(tmp_path: Path) -> None:
    refused(UsageError, tmp_path / "new", "nothing to resume", resume=True)
    assert not (tmp_path / "new").exists()


def test_killed_in_the_first_moment(tmp_path: Path) -> None:
    for name in (LOCK_FILE, f"{MANIFEST_FILE}.tmp"):
        (tmp_path / name).touch()

    with opened(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK_FILE, MANIFEST_FILE]


def test_output_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for path, error in ((tmp_path / "file", UsageError), (tmp_path / "file" / "run", ResourceError)):
        refused(error, path)


def test_second_process_is_refused(run: Path) -> None:
    with opened(run):
        refused(UsageError, run, "another process")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    refused(ResourceError, tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "error"), [("{", VerificationError), ("[]", VerificationError), ("{}", UsageError)]
)
def test_manifest_that_cannot_be_used(run: Path, content: str, error: type[Exception]) -> None:
    (run / MANIFEST_FILE).write_text(content)

    refused(error, run)


def test_an_edited_manifest_is_refused(run: Path) -> None:
    file = run / MANIFEST_FILE
    file.write_text(file.read_text().replace('"five"', '"six"'))

    refused(VerificationError, run, "edited after it was written")
    with opened(run, overwrite=True) as manifest:
        assert manifest.record.warnings == ()


def test_another_stage_than_the_recorded_one_is_refused(run: Path) -> None:
    other = outcome(run, skipped=True, seconds=0)
    with opened(run) as manifest:
        manifest.add_stage(outcome(run, skipped=False, seconds=7), where="stages/prune")
        swapped = replace(other, artifact=replace(other.artifact, fingerprint="g"))
        with pytest.raises(VerificationError, match="another stage"):
            manifest.add_stage(swapped, where="stages/prune")


def test_files_of_the_run_itself_are_recorded(run: Path) -> None:
    for name in ("recipe.yaml", "README.md"):
        (run / name).write_text("a: 1\n")
    with opened(run) as manifest:
        manifest.add_files(("recipe.yaml", "README.md"))
        assert manifest.changed_files() == []
        (run / "recipe.yaml").write_text("a: 2\n")
        (run / "README.md").unlink()
        assert manifest.changed_files() == ["recipe.yaml", "README.md"]


@pytest.mark.parametrize("num_entries", [0, 1, 2])
def test_killed_while_it_is_emptied(run: Path, num_entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far it came, the directory is still ours, and holds whole stages or none."""
    for name in ("stages", "student"):
        (run / name).mkdir()
        (run / name / "weights").touch()
    removed: list[Path] = []

    def rmtree(path: Path) -> None:
        if len(removed) == num_entries:
            raise KeyboardInterrupt
        removed.append(path)
        shutil.rmtree(path)

    with monkeypatch.context() as patch:
        patch.setattr("compressor.runs.discarding.shutil", SimpleNamespace(rmtree=rmtree))
        with (
            pytest.raises(KeyboardInterrupt) if num_entries < 2 else nullcontext(),
            opened(run, overwrite=True),
        ):
            pass
    with opened(run, resume=True) as manifest:
        assert manifest.record.warnings == ()
    left = {path.name for path in run.iterdir()} - {LOCK_FILE, MANIFEST_FILE}
    assert len(left) == max(0, 1 - num_entries)
    assert all((run / name / "weights").is_file() for name in left)


def test_the_record_of_a_failed_preflight_stays(tmp_path: Path) -> None:
    """Of a new run; what it wrote besides does not."""
    made = PreflightRecord(fingerprint="f", num_layers=2, seconds=7, stages={}, error="x", ended="now")
    run = tmp_path / "run"

    def fail() -> None:
        with opened(run) as manifest:
            (run / "stages").mkdir()
            manifest.update(preflight=made)
            (run / "plan.json").touch()
            manifest.add_files(["plan.json"])
            raise UsageError("no kernel")

    with pytest.raises(UsageError, match="no kernel"):
        fail()
    assert {path.name for path in run.iterdir()} <= {MANIFEST_FILE, LOCK_FILE}
    with opened(run, resume=True) as manifest:
        assert manifest.record.preflight == made
        assert not manifest.changed_files()
