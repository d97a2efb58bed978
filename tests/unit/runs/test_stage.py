"""How a stage runs: finished, skipped, restarted, killed at any moment, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compressor.core.errors import NetworkError, ResourceError, UsageError, VerificationError
from compressor.runs.artifact import ARTIFACT_FILE, SCHEMA, read_artifact, sealed
from compressor.runs.stage import STAGE_FILE
from tests.unit.runs.bed import SCRATCH, Bed, Config, Killed, begin, kill


def test_finished_work_is_an_artifact_and_skipped(bed: Bed) -> None:
    outcome = bed.execute(Config(width=3))

    assert not outcome.skipped
    assert outcome.warnings == ("narrow",)
    assert outcome.artifact == read_artifact(bed.out_dir)
    assert outcome.artifact.lineage == ("source", "widen")
    assert outcome.artifact.num_parameters == 3
    assert sorted(path.name for path in bed.out_dir.iterdir()) == [ARTIFACT_FILE, "begun", "weights"]
    assert not bed.partial.exists()
    again = bed.execute(Config(width=3))
    assert (again.skipped, again.artifact, bed.runs) == (True, outcome.artifact, ["new"])


def test_equal_work_leaves_equal_bytes(bed: Bed, tmp_path: Path) -> None:
    bed.execute()
    first = (bed.out_dir / ARTIFACT_FILE).read_bytes()
    bed.out_dir = tmp_path / "elsewhere" / "again"
    bed.execute()

    assert (bed.out_dir / ARTIFACT_FILE).read_bytes() == first


def test_restart_discards_what_is_there(bed: Bed) -> None:
    bed.execute()
    outcome = bed.execute(Config(width=2), restart=True)

    assert not outcome.skipped
    assert (bed.out_dir / "weights").read_text() == "2"
    assert bed.runs == ["new", "new"]


def test_killed_work_continues_in_its_partial_directory(bed: Bed) -> None:
    begin(bed, finished=False)
    assert (bed.partial / STAGE_FILE).is_file()
    assert not bed.out_dir.exists()

    assert bed.execute().artifact.details == {"width": 1}
    assert bed.runs == ["new", "continued"]


@pytest.mark.parametrize("is_begun", [True, False])
def test_a_stage_that_wrote_nothing_leaves_what_was_begun(bed: Bed, is_begun: bool) -> None:
    if is_begun:
        begin(bed, finished=False)
    bed.refuses = True
    with pytest.raises(VerificationError):
        bed.execute()

    assert (bed.partial / "begun").is_file() is bed.partial.exists() is is_begun


@pytest.mark.parametrize(
    ("error", "is_kept"), [(NetworkError("the hub is away"), True), (UsageError("malformed"), False)]
)
def test_only_what_the_same_input_could_continue_is_kept(bed: Bed, error: Exception, is_kept: bool) -> None:
    bed.fails = error
    with pytest.raises(type(error)):
        bed.execute()

    assert bed.partial.exists() is is_kept


def test_killed_while_the_record_was_begun(bed: Bed) -> None:
    bed.partial.mkdir(parents=True)
    (bed.partial / f"{STAGE_FILE}.tmp").write_text("{")

    assert not bed.execute().skipped
    assert sorted(path.name for path in bed.out_dir.iterdir()) == [ARTIFACT_FILE, "begun", "weights"]


@pytest.mark.parametrize(
    ("step", "is_recorded"),
    [("sync_tree", False), ("_publish", True), ("discard", True), ("sync_tree_parent", True)],
)
def test_killed_while_publishing(
    bed: Bed, step: str, is_recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is recorded is not done again: its checkpoints may be gone already."""
    with monkeypatch.context() as patch:
        patch.setattr(f"compressor.runs.stage.{step}", kill)
        with pytest.raises(Killed):
            bed.execute()
    at_kill = bed.partial if bed.partial.exists() else bed.out_dir
    assert (at_kill / ARTIFACT_FILE).exists() is is_recorded

    assert bed.execute().artifact.details == {"width": 1}
    assert bed.runs == (["new"] if is_recorded else ["new", "continued"])
    assert sorted(path.name for path in bed.out_dir.iterdir()) == [ARTIFACT_FILE, "begun", "weights"]
    assert not bed.partial.exists()


@pytest.mark.parametrize("harm", ["another weight", "no weight", "no record", "another record"])
def test_recorded_work_that_was_harmed_before_it_was_published_is_done_again(
    bed: Bed, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("compressor.runs.stage._publish", kill)
        with pytest.raises(Killed):
            bed.execute()
    weights, record = bed.partial / "weights", bed.partial / ARTIFACT_FILE
    (bed.partial / SCRATCH).rename(bed.partial / f"{SCRATCH}.discarded-0")  # while it was deleted
    if harm == "another weight":
        weights.write_text("9")
    elif harm == "another record":
        record.write_text(record.read_text().replace('"width": 1', '"width": 9'))
    else:
        (weights if harm == "no weight" else record).unlink()

    assert bed.execute().artifact.details == {"width": 1}
    assert bed.runs == ["new", "continued"]
    assert (bed.out_dir / "weights").read_text() == "1"
    assert sorted(path.name for path in bed.out_dir.iterdir()) == [ARTIFACT_FILE, "begun", "weights"]
    assert set(read_artifact(bed.out_dir).files) == {"begun", "weights"}


def test_directory_with_something_else_is_refused(bed: Bed) -> None:
    bed.out_dir.mkdir(parents=True)
    (bed.out_dir / "thesis.tex").write_text("mine")

    with pytest.raises(UsageError, match="in use"):
        bed.execute()
    assert [path.name for path in bed.out_dir.parent.rglob("*")] == ["widen", "thesis.tex"]


def test_empty_directory_is_used(bed: Bed) -> None:
    bed.out_dir.mkdir(parents=True)

    assert not bed.execute().skipped


def test_corrupt_record(bed: Bed) -> None:
    bed.execute()
    incomplete = {"schema": SCHEMA, "files": [1]}
    for content, message in (
        ({}, "no record of an artifact"),
        ({"schema": "compress-export/artifact/1"}, "another version of this tool"),
        (incomplete, "edited after it was written"),
        (sealed(incomplete), "record is corrupt"),
    ):
        (bed.out_dir / ARTIFACT_FILE).write_text(json.dumps(content))
        with pytest.raises(VerificationError, match=message):
            bed.execute()


@pytest.mark.parametrize("how", ["missing", "longer", "added", "record"])
def test_finished_work_with_other_files_is_refused(bed: Bed, how: str) -> None:
    bed.execute()
    weights = bed.out_dir / "weights"
    if how == "missing":
        weights.unlink()
    elif how == "longer":
        weights.write_text("11")
    elif how == "added":
        (bed.out_dir / "masks.json").touch()
    else:
        record = bed.out_dir / ARTIFACT_FILE
        record.write_text(record.read_text().replace('"num_parameters": 1', '"num_parameters": 2'))

    with pytest.raises(VerificationError, match=f"--overwrite|{bed.out_dir}"):
        bed.execute()
    assert bed.runs == ["new"]


def test_a_directory_that_was_moved_and_linked_is_the_same(bed: Bed, tmp_path: Path) -> None:
    bed.execute()
    bed.out_dir.rename(tmp_path / "moved")
    bed.out_dir.symlink_to(tmp_path / "moved", target_is_directory=True)
    assert bed.execute().skipped

    assert not bed.execute(Config(width=2), restart=True).skipped
    assert bed.out_dir.is_symlink()
    assert (tmp_path / "moved" / "weights").read_text() == "2"
    shutil.rmtree(tmp_path / "moved")
    with pytest.raises(UsageError, match="link to a directory that does not exist"):
        bed.execute()


@pytest.mark.parametrize("finished", [True, False])
def test_killed_while_it_is_discarded(bed: Bed, finished: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a stage never stands under its name; the rest goes with the next start."""
    begin(bed, finished)
    with monkeypatch.context() as patch:
        patch.setattr("compressor.runs.discarding.shutil.rmtree", kill)
        with pytest.raises(Killed):
            bed.execute(restart=True)
    assert not (bed.out_dir if finished else bed.partial).exists()
    assert [path.name for path in bed.out_dir.parent.iterdir() if ".discarded-" in path.name]

    assert not bed.execute(Config(width=2)).skipped
    assert [path.name for path in bed.out_dir.parent.iterdir()] == ["widen"]


def test_a_file_the_machine_refuses_to_read_is_not_corrupt(bed: Bed) -> None:
    bed.fails = VerificationError("the checkpoint cannot be loaded")
    bed.fails.__cause__ = RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(ResourceError, match="out of memory"):
        bed.execute()
