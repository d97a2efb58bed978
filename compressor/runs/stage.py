"""How a stage runs: fingerprinted, into `<dir>.partial`, synced, renamed; finished work is skipped.

A stage is a plain function `run(config, source, out_dir, context) -> details`. It reads one artifact
and fills a new directory; this module decides whether it must run at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from compressor.core.console import Console
from compressor.core.errors import DependencyError, UnsupportedError, UsageError, VerificationError
from compressor.core.json_files import read_json_mapping
from compressor.core.peak_memory import measured_memory
from compressor.core.processes import is_main, on_main
from compressor.core.resource_errors import as_resource_error, refused_directory
from compressor.recipe.option import content_of
from compressor.runs.artifact import (
    ARTIFACT_FILE,
    LOGS,
    STAGE_FILE,
    ModelArtifact,
    check_files,
    fingerprint_of,
    read_artifact,
    record_files,
    sync,
    sync_tree,
    write_json,
)
from compressor.runs.cleaned import CLEANED_FILE, files_left, is_cleaned
from compressor.runs.discarding import discard, discard_inside, remove_leftovers
from compressor.runs.inputs import plain_inputs, refuse_difference
from compressor.runs.redo import Redo, redo_by_command

PARTIAL_SUFFIX = ".partial"
# Other input makes another run; after a network error the same one is taken up again.
_INPUT_ERRORS = (UsageError, UnsupportedError, DependencyError)

Config = TypeVar("Config", bound=BaseModel)


@dataclass(kw_only=True)
class StageContext:
    """What every stage may use besides its configuration and its source.

    Attributes:
        device: Torch device name.
        dtype: Torch dtype name of stored 16-bit weights and of forward passes.
        teacher: The original model, for stages that compare with it.
        others: Further artifacts a stage reads, by role.
        redo: How a stage's directory is made again, for errors about it.
        checked: Directories whose contents this process wrote, or compared with their records.
        before: Called before the stage does its work; not when that is there already.
    """

    console: Console
    seed: int
    device: str
    dtype: str
    teacher: ModelArtifact | None = None
    others: dict[str, ModelArtifact] = field(default_factory=dict)
    trust_remote_code: bool = False
    redo: Redo = redo_by_command
    checked: set[Path] = field(default_factory=set)
    before: Callable[[], None] = lambda: None

    def check_contents(self, artifact: ModelArtifact) -> None:
        """Compare every file of a finished stage with what was recorded of it, once in this process.

        A checkpoint made elsewhere has no such record; its fingerprint covers it.

        Raises:
            UsageError: when its large files were deleted on purpose.
            VerificationError: naming the first file that is missing, new or changed.
        """
        path = artifact.path.resolve()
        if is_cleaned(path):
            raise UsageError(
                "the weights that this needs were deleted by `clean`",
                where=str(artifact.path),
                hint=f"make them again: {self.redo(artifact.stage, artifact.path)}",
            )
        if artifact.files and path not in self.checked:
            redo = self.redo(artifact.stage, artifact.path)
            check_files(artifact.path, artifact.files, contents=True, redo=redo, stage=artifact.stage)
            self.checked.add(path)


def _reads_no_text(spec: str) -> str:
    raise AssertionError(f"a stage that reads {spec} has no fingerprint for it")


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[Config]):
    """One step of a run.

    Attributes:
        name: Its name in commands, directories and lineages.
        run: Fills `out_dir` and returns the artifact's `num_parameters` and `details`.
        format_version: Raised when the stage's output changes for equal input.
        libraries: Distributions whose versions decide its numbers.
        data: The text sources its configuration names.
        fingerprint: The fingerprint of a text source.
        content: What of its configuration decides its output; by default every field that is not marked as
            one of the course.
        require_memory: Refuses checkpoints that it would load and that cannot be in memory.
        parallel: Runs in every process of a run, which share its work; else in the main one alone.
    """

    name: str
    run: Callable[[Config, ModelArtifact, Path, StageContext], StageResult]
    format_version: int = 1
    libraries: tuple[str, ...] = ("torch", "transformers")
    data: Callable[[Config], tuple[str, ...]] = lambda _config: ()
    fingerprint: Callable[[str], str] = _reads_no_text
    content: Callable[[Config], dict[str, object]] = content_of
    require_memory: Callable[[Config, ModelArtifact, StageContext], None] = (
        lambda _config, _source, _context: None
    )
    parallel: bool = False


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage reports of its output; the first two go into `artifact.json`.

    Attributes:
        scratch: Names in its directory that only unfinished work needs. They are removed after everything
            else is recorded: a kill until then loses none of it.
    """

    num_parameters: int
    details: dict[str, Any] = field(default_factory=dict)
    scratch: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StageOutcome:
    """An artifact, and what it cost in this process: nothing when it was there already."""

    artifact: ModelArtifact
    skipped: bool
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    warnings: tuple[str, ...] = ()


def execute(
    stage: Stage[Config],
    config: Config,
    source: ModelArtifact,
    out_dir: Path,
    context: StageContext,
    *,
    restart: bool = False,
) -> StageOutcome:
    """Run a stage unless its finished output, in files of the recorded sizes, is already in `out_dir`.

    What it reads is compared with its recorded sha256 first. With `restart`, what is there is discarded
    instead of refused.

    Raises:
        UsageError: when `out_dir` holds the output, or the beginning, of a different run.
        VerificationError: when a file of finished work is missing, new or changed.
        ResourceError: when a checkpoint that it loads cannot be in memory.
    """
    out_dir = on_main(lambda: _real(out_dir))
    redo = context.redo(stage.name, out_dir)
    inputs = on_main(lambda: _inputs(stage, config, source, context))
    finished = on_main(lambda: _finished(stage.name, out_dir, inputs, restart=restart, redo=redo))
    if finished is not None:
        return StageOutcome(artifact=finished, skipped=True)
    read = [source, *context.others.values(), *([context.teacher] if context.teacher else [])]
    for artifact in read:
        on_main(partial(context.check_contents, artifact))
    on_main(lambda: stage.require_memory(config, source, context))
    context.before()
    is_new = not out_dir.with_name(out_dir.name + PARTIAL_SUFFIX).exists()
    begun = on_main(lambda: _open_partial(stage.name, out_dir, inputs, redo=redo))
    started, num_warnings = time.monotonic(), len(context.console.warnings)
    work = partial(stage.run, config, source, begun, context)
    with measured_memory() as peak, _cleared_after_errors(begun, is_new=is_new):
        recorded = on_main(lambda: _recorded(begun))
        if recorded is None:
            on_main(lambda: remove_leftovers(begun))
            result = work() if stage.parallel else on_main(work)
            made = ModelArtifact(
                path=begun,
                stage=stage.name,
                fingerprint=fingerprint_of(inputs),
                lineage=(*source.lineage, stage.name),
                num_parameters=result.num_parameters,
                texts=_texts(inputs, read),
                inputs=dict(inputs),
                details=result.details,
            )
            recorded = on_main(lambda: _record(made, result.scratch))
    published = on_main(lambda: _publish(recorded, out_dir))
    context.checked.add(out_dir.resolve())
    return StageOutcome(
        artifact=published,
        skipped=False,
        seconds=time.monotonic() - started,
        peak_memory_bytes=peak.num_bytes,
        warnings=tuple(context.console.warnings[num_warnings:]),
    )


def _inputs(
    stage: Stage[Config], config: Config, source: ModelArtifact, context: StageContext
) -> dict[str, object]:
    """Everything that decides a stage's output, as plain JSON values."""
    return plain_inputs(
        {
            "stage": stage.name,
            "format_version": stage.format_version,
            "config": stage.content(config),
            "source": source.fingerprint,
            "teacher": context.teacher.fingerprint if context.teacher else None,
            "others": {name: other.fingerprint for name, other in sorted(context.others.items())},
            "data": {spec: stage.fingerprint(spec) for spec in sorted(set(stage.data(config)))},
            "seed": context.seed,
            "device": context.device,
            "dtype": context.dtype,
        },
        libraries=stage.libraries,
    )


@contextmanager
def _cleared_after_errors(begun: Path, *, is_new: bool) -> Iterator[None]:
    """Remove what an error left where nothing was begun that better input could continue."""
    try:
        yield
    except Exception as error:
        is_input = isinstance(error, _INPUT_ERRORS)
        if is_main() and is_new and (is_input or [path.name for path in begun.iterdir()] == [STAGE_FILE]):
            discard(begun)
        # A file that the machine refused to read, or to map, is not corrupt.
        refused = as_resource_error(error) if isinstance(error, VerificationError) else None
        if refused is not None:
            raise refused from error
        raise


def _texts(inputs: Mapping[str, object], read: Iterable[ModelArtifact]) -> tuple[str, ...]:
    """Fingerprints of every text that a stage or what it reads has seen."""
    data = inputs["data"]
    own = map(str, data.values()) if isinstance(data, dict) else ()
    return tuple(sorted({*own, *(text for artifact in read for text in artifact.texts)}))


def _real(out_dir: Path) -> Path:
    """Where the output is: a directory that was moved to another disk may be linked from its old place."""
    if not out_dir.is_symlink():
        return out_dir
    if not out_dir.exists():
        raise UsageError(
            "the output path is a link to a directory that does not exist",
            where=str(out_dir),
            found=out_dir.readlink(),
            hint="remove the link, or put back the directory that it names",
        )
    return out_dir.resolve()


def _finished(
    stage: str, out_dir: Path, inputs: Mapping[str, object], *, restart: bool, redo: str
) -> ModelArtifact | None:
    """The finished output of the same inputs, if it is there and its files have their sizes."""
    for directory in (out_dir, out_dir.with_name(out_dir.name + PARTIAL_SUFFIX)):
        remove_leftovers(directory.parent, of=directory.name)
        if restart:
            discard(directory)
    if not (out_dir / ARTIFACT_FILE).is_file():
        return None
    finished = read_artifact(out_dir, redo=redo)
    refuse_difference(stage, out_dir / ARTIFACT_FILE, finished.inputs, inputs, redo=redo)
    (out_dir / STAGE_FILE).unlink(missing_ok=True)  # left by a kill right after the renaming
    but = (CLEANED_FILE,) if is_cleaned(out_dir) else ()
    check_files(out_dir, files_left(finished), contents=False, redo=redo, but=but, stage=finished.stage)
    return finished


def start_afresh(out_dir: Path, *, but: tuple[str, ...] = ()) -> None:
    """Remove what is in a partial directory, but for the record of its inputs and what will be continued.

    What an interrupted run left of its output would otherwise be published as output.
    """
    discard_inside(out_dir, but=(STAGE_FILE, *but))


def _open_partial(stage: str, out_dir: Path, inputs: Mapping[str, object], *, redo: str) -> Path:
    """The directory to fill: continued if it was begun with the same inputs, else new."""
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UsageError(
            "the output directory is in use, and this tool finished no stage in it",
            where=str(out_dir),
            expected=f"an empty directory, or one with {ARTIFACT_FILE}",
            hint=f"choose another --output-dir; or, if this tool wrote it: {redo}",
        )
    begun = out_dir.with_name(out_dir.name + PARTIAL_SUFFIX)
    record = begun / STAGE_FILE
    if record.is_file():
        begun_with = read_json_mapping(record, what="the record of an unfinished stage")
        refuse_difference(stage, record, begun_with, inputs, redo=redo)
        return begun
    if begun.exists() and any(path.suffix != ".tmp" for path in begun.iterdir()):
        raise UsageError(
            "the output directory is in use, and this tool began no stage in it",
            where=str(begun),
            expected=f"an empty directory, or one with {STAGE_FILE}",
            hint=f"choose another --output-dir; or, if this tool wrote it: {redo}",
        )
    try:
        begun.mkdir(parents=True, exist_ok=True)
        write_json(record, inputs)
    except OSError as error:
        raise refused_directory(begun, error, what="written") from error
    return begun


def _record(artifact: ModelArtifact, scratch: tuple[str, ...]) -> ModelArtifact:
    """Write the record of a finished output, all of which is on the disk before it."""
    recorded = replace(artifact, files=record_files(artifact.path, but=scratch))
    sync_tree(artifact.path)
    recorded.write()
    sync(artifact.path)
    return recorded


def _recorded(begun: Path) -> ModelArtifact | None:
    """The finished output that a kill left in a partial directory, if every file is as it was recorded."""
    if not (begun / ARTIFACT_FILE).is_file():
        return None
    try:
        artifact = read_artifact(begun)
        beside = _beside(artifact)
        check_files(begun, artifact.files, contents=True, but=tuple(path.name for path in beside))
    except VerificationError:
        return None  # the work itself is still there, and done again from where it can be
    return artifact


def _beside(artifact: ModelArtifact) -> list[Path]:
    """What is in an artifact's directory and is no part of it."""
    own = {*(Path(name).parts[0] for name in artifact.files), ARTIFACT_FILE, STAGE_FILE, LOGS}
    return [path for path in artifact.path.iterdir() if path.name not in own]


def _publish(artifact: ModelArtifact, out_dir: Path) -> ModelArtifact:
    for path in _beside(artifact):
        discard(path)
    if out_dir.exists():
        out_dir.rmdir()
    artifact.path.rename(out_dir)
    # Only now: without its record a partial directory could not be told from someone else's.
    (out_dir / STAGE_FILE).unlink()
    sync_tree_parent(out_dir)
    return read_artifact(out_dir)


def sync_tree_parent(path: Path) -> None:
    """Flush the directory entry of `path` to disk."""
    sync(path.parent)
