"""Stages whose large files were deleted on purpose: their records stay, and say what was there."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from compressor.core.json_files import as_record, read_json_mapping
from compressor.core.records import Record
from compressor.runs.artifact import ARTIFACT_FILE, Files, ModelArtifact, read_artifact, write_json

CLEANED_FILE = "cleaned.json"
SCHEMA: Literal["compress-export/cleaned/1"] = "compress-export/cleaned/1"
# Plans, curves and pages stay; weights, optimizer states and statistics go.
LARGE_BYTES = 1 << 16


class Cleaned(Record):
    """What was deleted of a stage, which its record names with sizes and sums."""

    schema_id: Literal["compress-export/cleaned/1"] = Field(SCHEMA, alias="schema")
    fingerprint: str
    deleted: tuple[str, ...]


def is_cleaned(directory: Path) -> bool:
    """Whether a stage's large files were deleted on purpose, or that was begun."""
    return (directory / CLEANED_FILE).is_file() and (directory / ARTIFACT_FILE).is_file()


def read_cleaned(directory: Path) -> Cleaned:
    """What was deleted of a cleaned stage.

    Raises:
        VerificationError: when the mark cannot be read.
    """
    file, what = directory / CLEANED_FILE, "the mark of a cleaned stage"
    return as_record(Cleaned, read_json_mapping(file, what=what), what=what, where=file)


def files_left(artifact: ModelArtifact) -> Files:
    """What should be there of a finished stage: all that it recorded, or what cleaning left."""
    if not is_cleaned(artifact.path):
        return artifact.files
    deleted = set(read_cleaned(artifact.path).deleted)
    return {name: record for name, record in artifact.files.items() if name not in deleted}


def clean(directory: Path) -> int:
    """Delete the large files of a finished stage; returns the bytes that this frees.

    The mark comes first: what a kill leaves is cleaned, whatever of it is still there.

    Raises:
        UsageError, VerificationError: for a directory without a stage's record.
    """
    artifact = read_artifact(directory)
    if not is_cleaned(directory):
        large = sorted(name for name, record in artifact.files.items() if record["bytes"] > LARGE_BYTES)
        if not large:
            return 0
        mark = Cleaned(fingerprint=artifact.fingerprint, deleted=tuple(large))
        write_json(directory / CLEANED_FILE, mark.to_json())
    freed = 0
    for name in read_cleaned(directory).deleted:
        path = directory / name
        if name in artifact.files and path.is_file() and not path.is_symlink():
            freed += path.stat().st_size
            path.unlink()
    return freed
