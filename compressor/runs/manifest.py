"""The record of a run: what ran where, with which versions, how long, and what was warned of.

Also the claim on a run directory: only a directory with our manifest, or an empty one, is written.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import Field

from compressor import __version__
from compressor.core.errors import CompressExportError, UsageError, VerificationError
from compressor.core.hardware import Machine
from compressor.core.json_files import as_record, read_json_mapping
from compressor.core.processes import is_main
from compressor.core.records import Record, RelativeName
from compressor.core.resource_errors import refused_directory
from compressor.runs.artifact import sealed, sha256_of_file, unsealed, write_json
from compressor.runs.discarding import discard_inside, remove_leftovers
from compressor.runs.inputs import version_of
from compressor.runs.locking import LOCK_FILE, lock_run
from compressor.runs.preflight_record import PreflightRecord
from compressor.runs.stage import StageOutcome

MANIFEST_FILE = "manifest.json"
# Beside it: what to run again, what was planned, and the directory of the 16-bit student.
RECIPE_FILE, PLAN_FILE, STUDENT = "recipe.yaml", "plan.json", "student"
SCHEMA: Literal["compress-export/manifest/3"] = "compress-export/manifest/3"
_RECORDED_LIBRARIES = (
    *("torch", "transformers", "accelerate", "datasets", "nvidia-modelopt", "onnx", "onnxruntime"),
    *("onnxruntime-genai", "tensorrt-llm", "tensorrt", "safetensors", "numpy"),
)


def versions() -> dict[str, str]:
    """Versions of this tool, Python and the libraries that matter."""
    own = {"compress-export": __version__, "python": platform.python_version()}
    return own | {name: version_of(name) for name in _RECORDED_LIBRARIES}


class StageEntry(Record):
    """One finished stage of a run.

    Attributes:
        seconds: What it took in the process that ran it.
        peak_memory_bytes: The most memory that the process and its children held while it ran.
        finished: When, in UTC.
    """

    stage: str
    fingerprint: str
    seconds: float
    peak_memory_bytes: int
    finished: str
    warnings: tuple[str, ...]


class ManifestRecord(Record):
    """`manifest.json`.

    Attributes:
        stages: By directory, relative to the run's.
        files: sha256 of what the run itself wrote into its directory.
        warnings: Of the run as a whole.
        preflight: The last one that was made, passed or not.
    """

    schema_id: Literal["compress-export/manifest/3"] = Field(SCHEMA, alias="schema")
    created: str
    stages: dict[RelativeName, StageEntry] = Field({})
    files: dict[RelativeName, str] = Field({})
    versions: dict[str, str] = Field({})
    hardware: Machine | None = None
    warnings: tuple[str, ...] = ()
    preflight: PreflightRecord | None = None


class Manifest:
    """`manifest.json` of one run directory, rewritten after every stage."""

    def __init__(self, out_dir: Path, record: ManifestRecord) -> None:
        self._out_dir = out_dir
        self.record = record

    def add_stage(self, outcome: StageOutcome, *, where: str) -> None:
        """Record a stage in `where`, relative to the run; a skipped one keeps the figures it was made with.

        Raises:
            VerificationError: when another stage is recorded there.
        """
        artifact, recorded = outcome.artifact, self.record.stages.get(where)
        if outcome.skipped and recorded is not None:
            if recorded.fingerprint != artifact.fingerprint:
                raise VerificationError(
                    "the manifest records another stage than the one that is there",
                    where=str(self._out_dir / where),
                    expected=recorded.fingerprint,
                    found=artifact.fingerprint,
                    hint="use --restart-from with that stage, or --overwrite to start over",
                )
            return
        entry = StageEntry(
            stage=artifact.stage,
            fingerprint=artifact.fingerprint,
            seconds=round(outcome.seconds, 3),
            peak_memory_bytes=outcome.peak_memory_bytes,
            finished=now(),
            warnings=outcome.warnings,
        )
        self.update(stages={**self.record.stages, where: entry})

    def add_files(self, names: Iterable[str]) -> None:
        """Record files that the run itself wrote into its directory, beside what its stages wrote."""
        if is_main():
            written = {name: sha256_of_file(self._out_dir / name) for name in names}
            self.update(files={**self.record.files, **written})

    def changed_files(self) -> list[str]:
        """Files of `add_files` that are missing or no longer as they were written."""
        return [
            name
            for name, sha256 in self.record.files.items()
            if not (self._out_dir / name).is_file() or sha256_of_file(self._out_dir / name) != sha256
        ]

    def update(self, **fields: object) -> None:
        """Set top-level fields and write the file, synced; the main process does it for all."""
        self.record = self.record.model_copy(update=fields)
        if is_main():
            write_json(self._out_dir / MANIFEST_FILE, sealed(self.record.to_json()))


@contextmanager
def open_run_directory(out_dir: Path, *, resume: bool, overwrite: bool) -> Iterator[Manifest]:
    """Claim a run directory and read or begin its manifest; the main process does it for all.

    Raises:
        UsageError: a non-empty directory that is not ours, another process in it, nothing to resume.
        ResourceError: a directory that cannot be written.
    """
    if not is_main():
        yield Manifest(out_dir, _new_record())
        return
    file = out_dir / MANIFEST_FILE
    is_ours, existed = file.is_file(), out_dir.is_dir()
    claim_directory(out_dir, is_ours=is_ours, resume=resume)
    with lock_run(out_dir):
        remove_leftovers(out_dir)
        is_new = not is_ours
        if overwrite and is_ours:
            write_json(file, sealed(_new_record().to_json()))
            discard_inside(out_dir, but=(MANIFEST_FILE, LOCK_FILE))
        manifest = Manifest(out_dir, read_manifest(out_dir) if is_ours else _new_record())
        manifest.update(versions=versions())
        try:
            yield manifest
        except CompressExportError:
            if is_new and not manifest.record.stages and not _has_checkpoint(out_dir):
                # Nothing was made that the same command, or better input, could continue.
                _clear(out_dir, keeps_record=manifest.record.preflight is not None, existed=existed)
            raise


def _has_checkpoint(out_dir: Path) -> bool:
    """Whether a training of an unfinished stage got as far as to save something."""
    return any(out_dir.glob("stages/*.partial/**/checkpoint-*"))


def _clear(out_dir: Path, *, keeps_record: bool, existed: bool) -> None:
    """Remove what an error left of a new run; the record of its preflight, which took minutes, may stay."""
    # The manifest last: until then a kill leaves a directory that is recognised as ours.
    discard_inside(out_dir, but=(MANIFEST_FILE, LOCK_FILE))
    if keeps_record:
        record = read_manifest(out_dir).model_copy(update={"files": {}})
        write_json(out_dir / MANIFEST_FILE, sealed(record.to_json()))
        return
    discard_inside(out_dir, but=(LOCK_FILE,))
    discard_inside(out_dir)
    if not existed:
        out_dir.rmdir()


def claim_directory(out_dir: Path, *, is_ours: bool, resume: bool, marker: str = MANIFEST_FILE) -> None:
    """Refuse a directory that holds something else, or nothing to resume; `marker` makes a directory ours.

    Raises:
        UsageError, ResourceError: for such a directory, or one that cannot be created.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise UsageError("the output path is a file", where=str(out_dir), hint="choose another --output-dir")
    if resume and not is_ours:
        raise UsageError("there is nothing to resume", where=str(out_dir), hint="leave --resume out")
    begun = {LOCK_FILE, f"{marker}.tmp"}  # all that a kill in the first moment leaves
    if not is_ours and out_dir.exists() and any(path.name not in begun for path in out_dir.iterdir()):
        raise UsageError(
            "the output directory is in use: it holds files that this tool did not write",
            where=str(out_dir),
            expected=f"an empty directory, or one with {marker}",
            hint="choose another --output-dir",
        )
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused_directory(out_dir, error, what="made") from error


def now() -> str:
    """This moment in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _new_record() -> ManifestRecord:
    return ManifestRecord(created=now())


def read_manifest(directory: Path) -> ManifestRecord:
    """The manifest of a run.

    Raises:
        UsageError: when another version of this tool wrote it.
        VerificationError: when it cannot be read, or was edited.
    """
    file, what = directory / MANIFEST_FILE, "the manifest"
    record = read_json_mapping(file, what=what)
    if record.get("schema") != SCHEMA:
        raise UsageError(
            "the manifest was written by another version of this tool",
            where=str(file),
            expected=SCHEMA,
            found=record.get("schema"),
            hint="the same command with --overwrite starts over; another --output-dir keeps this run",
        )
    hint = "put it back as it was, or --overwrite to start anew"
    return as_record(ManifestRecord, unsealed(record, file, what=what, hint=hint), what=what, where=file)
