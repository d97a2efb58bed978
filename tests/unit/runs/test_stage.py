from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from compressor.core.console import Console
from compressor.core.errors import NetworkError, ResourceError, UsageError, VerificationError
from compressor.data.sources import source_fingerprint
from compressor.runs.artifact import ARTIFACT_FILE, SCHEMA, ModelArtifact, read_artifact, sealed
from compressor.runs.inputs import comparable, differences
from compressor.runs.stage import (
    PARTIAL_SUFFIX,
    STAGE_FILE,
    Stage,
    StageContext,
    StageOutcome,
    StageResult,
    execute,
)


class Config(BaseModel):
    width: int = 1
    text: str | None = None


class Killed(BaseException):
    """Stands in for a kill: nothing in the code under test may catch it."""


@dataclass
class Bed:
    """One stage that writes a file in two steps, and what it is called with."""

    out_dir: Path
    source: ModelArtifact
    context: StageContext
    runs: list[str] = field(default_factory=list)
    killed: bool = False
    refuses: bool = False
    fails: Exception | None = None

    def stage(self) -> Stage[Config]:
        return Stage(
            name="widen",
            run=self._run,
            data=lambda config: (config.text,) if config.text else (),
            fingerprint=source_fingerprint,
        )

    def _run(
        self, config: Config, source: ModelArtifact, out_dir: Path, context: StageContext
    ) -> StageResult:
        if self.refuses:
            raise VerificationError("weights are not finite")
        begun = out_dir / "begun"
        self.runs.append("continued" if begun.exists() else "new")
        begun.write_text("1")
        context.console.warn("narrow")
        if self.killed:
            raise Killed
        if self.fails is not None:
            raise self.fails
        (out_dir / "weights").write_text(str(config.width))
        return StageResult(num_parameters=config.width, details={"width": config.width})

    def execute(self, config: Config | None = None, *, restart: bool = False) -> StageOutcome:
        return execute(
            self.stage(), config or Config(), self.source, self.out_dir, self.context, restart=restart
        )

    @property
    def partial(self) -> Path:
        return self.out_dir.with_name(self.out_dir.name + PARTIAL_SUFFIX)


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    source = ModelArtifact(
        path=tmp_path / "source", stage="source", fingerprint="f0", lineage=("source",), num_parameters=9
    )
    context = StageContext(console=Console(), seed=0, device="cpu", dtype="float32")
    return Bed(out_dir=tmp_path / "stages" / "widen", source=source, context=context)


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


def test_an_artifact_names_every_text_on_the_way_to_it(bed: Bed, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("read by this stage")
    bed.source = replace(bed.source, texts=("read before",))
    bed.context.teacher = replace(bed.source, texts=("read by the teacher",))
    bed.context.others = {"stored": replace(bed.source, texts=("read by another",))}

    artifact = bed.execute(Config(text=str(text))).artifact

    read = {"read before", "read by the teacher", "read by another", source_fingerprint(str(text))}
    assert artifact.texts == tuple(sorted(read))


def test_equal_work_leaves_equal_bytes(bed: Bed, tmp_path: Path) -> None:
    bed.execute()
    first = (bed.out_dir / ARTIFACT_FILE).read_bytes()
    bed.out_dir = tmp_path / "elsewhere" / "again"
    bed.execute()

    assert (bed.out_dir / ARTIFACT_FILE).read_bytes() == first


@pytest.mark.parametrize("finished", [True, False])
def test_changed_option_is_refused_with_what_changed(bed: Bed, finished: bool) -> None:
    begin(bed, finished)

    with pytest.raises(UsageError, match=r"config\.width: 1 -> 2") as caught:
        bed.execute(Config(width=2))
    assert "--restart-from widen" in str(caught.value.hint)
    assert len(bed.runs) == 1


def begin(bed: Bed, finished: bool) -> None:
    bed.killed = not finished
    if finished:
        bed.execute()
        return
    with pytest.raises(Killed):
        bed.execute()
    bed.killed = False


def test_changed_source_seed_or_data_is_refused(bed: Bed, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one\n")
    config = Config(text=str(text))
    bed.execute(config)

    bed.source = replace(bed.source, fingerprint="f1")
    bed.context.seed = 5
    text.write_text("two\n")
    with pytest.raises(UsageError) as caught:
        bed.execute(config)
    for name in ("source: f0 -> f1", "seed: 0 -> 5", f"data.{text}: sha256:"):
        assert name in str(caught.value.found)


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


@pytest.mark.parametrize("step", ["sync_tree", "sync_tree_parent"])
def test_killed_while_publishing(bed: Bed, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(f"compressor.runs.stage.{step}", kill)
        with pytest.raises(Killed):
            bed.execute()

    bed.execute()
    assert sorted(path.name for path in bed.out_dir.iterdir()) == [ARTIFACT_FILE, "begun", "weights"]
    assert not bed.partial.exists()


def kill(*_arguments: object) -> None:
    raise Killed


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
        ({}, "of another version"),
        (incomplete, "edited after it was written"),
        (sealed(incomplete), "record is corrupt"),
    ):
        (bed.out_dir / ARTIFACT_FILE).write_text(json.dumps(content))
        with pytest.raises(VerificationError, match=message):
            bed.execute()


def test_differences_name_leaves() -> None:
    before = {"a": {"b": 1, "c": 2}, "d": [1]}
    now = {"a": {"b": 1, "c": 3}, "e": None, "d": [1]}

    assert differences(before, now) == ["a.c: 2 -> 3"]


def flip(file: Path) -> None:
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1, *file.read_bytes()[1:]]))


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


@pytest.mark.parametrize("role", ["source", "teacher", "other"])
def test_what_a_stage_reads_is_compared_first_and_once(bed: Bed, tmp_path: Path, role: str) -> None:
    read = bed.execute().artifact
    bed.out_dir = tmp_path / "next"
    bed.source = read if role == "source" else bed.source
    bed.context.teacher = read if role == "teacher" else None
    bed.context.others = {"more": read} if role == "other" else {}
    bed.context.checked.clear()  # another process
    flip(read.path / "weights")

    with pytest.raises(VerificationError, match="has changed") as caught:
        bed.execute()
    assert caught.value.where == str(read.path / "weights")
    assert bed.runs == ["new"]
    assert not bed.partial.exists()
    flip(read.path / "weights")
    bed.execute()
    flip(read.path / "weights")
    bed.out_dir = tmp_path / "third"
    bed.execute()  # compared by this process already


TWO = b'{"text": "one"}\n{"text": "two"}\n'
TWO_ELSEWHERE = gzip.compress(b'{"text":  "one"}\n\n{"text": "two"}\n', mtime=0)
OTHER = b'{"text": "one"}\n{"text": "three"}\n'


@pytest.mark.parametrize(
    ("name", "before", "moved_to", "moved", "other"),
    [
        ("text.txt", b"one\n", "copy.txt", b"one\n", b"two\n"),
        ("text.jsonl", TWO, "moved.jsonl.gz", TWO_ELSEWHERE, gzip.compress(OTHER, mtime=0)),
    ],
)
def test_a_text_under_another_path_is_the_same_text(
    bed: Bed, tmp_path: Path, name: str, before: bytes, moved_to: str, moved: bytes, other: bytes
) -> None:
    """Rows also under another name, with other white space and in another compression."""
    (tmp_path / name).write_bytes(before)
    (tmp_path / moved_to).write_bytes(moved)
    bed.execute(Config(text=str(tmp_path / name)))

    assert bed.execute(Config(text=str(tmp_path / moved_to))).skipped
    (tmp_path / moved_to).write_bytes(other)
    with pytest.raises(UsageError, match="of a different run"):
        bed.execute(Config(text=str(tmp_path / moved_to)))


@pytest.mark.parametrize("field", ["data", "prompts"])
def test_a_text_that_is_not_read_decides_nothing(field: str) -> None:
    """Scores that are random or of weights read no calibration text, and domains replace the one text."""
    configs: list[dict[str, Any]] = [
        {"section": {field: text}, "size": 3} for text in ("/a.txt", "/b.txt", "an/id")
    ]
    unread = [comparable({"config": config, "data": {}}) for config in configs]
    assert unread[0] == unread[1] == unread[2]
    other = {**configs[0], "size": 4}
    assert comparable({"config": other, "data": {}}) != unread[0]
    read = [
        comparable({"config": config, "data": {config["section"][field]: f"sha256:{number}"}})
        for number, config in enumerate(configs)
    ]
    assert read[0] != read[1] != read[2]


def test_prompts_count_where_they_are_read() -> None:
    """A stage that trains on sampled text knows it by the fingerprint of the stage that sampled."""

    def inputs(prompts: str, sampled: str) -> dict[str, Any]:
        return {"config": {"generate": {"prompts": prompts}}, "data": {}, "others": {"generated": sampled}}

    assert comparable(inputs("/a.txt", "1")) == comparable(inputs("/moved/a.txt", "1"))
    assert comparable(inputs("/a.txt", "1")) != comparable(inputs("/a.txt", "2"))
    read = {"config": {"prompts": "/a.txt"}, "data": {"/a.txt": "sha256:1"}}
    moved = {"config": {"prompts": "/b.txt"}, "data": {"/b.txt": "sha256:1"}}
    other = {"config": {"prompts": "/a.txt"}, "data": {"/a.txt": "sha256:2"}}
    assert comparable(read) == comparable(moved) != comparable(other)


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
