"""`lineage.json`: from the revision of the teacher to every artifact of a run, by their fingerprints.

It holds no time, host or path, like the records that it is made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from compressor.bundle.licence import Terms, terms_of
from compressor.core.json_files import as_record, read_json_mapping
from compressor.core.records import Record, RelativeName
from compressor.models.source import ModelSource
from compressor.runs.artifact import ARTIFACT_FILE, ModelArtifact, sha256_of_file, write_json
from compressor.runs.manifest import STUDENT

LINEAGE_FILE = "lineage.json"
SCHEMA: Literal["compress-export/lineage/1"] = "compress-export/lineage/1"
TEACHER = "teacher"
_SNAPSHOTS = "snapshots"  # where the hub's cache keeps a revision, under its name


class BaseModelRecord(Record):
    """The model that a run started from.

    Attributes:
        name: Its id on the hub, or the name of a local directory or file.
        revision: The hub's commit; None of a local model.
        file_sha256: Of a GGUF file.
        fingerprint: What the run recorded of its content.
    """

    name: str
    kind: Literal["hub", "directory", "gguf"]
    revision: str | None = None
    file_sha256: str | None = None
    fingerprint: str
    num_parameters: int
    terms: Terms


class Step(Record):
    """One artifact of the run.

    Attributes:
        stage: The stage that wrote it.
        fingerprint: Of everything that decided its content.
        record_sha256: Of its `artifact.json`, which names the sha256 of every file.
        made_from: Directories of this run that it was made from, and `teacher`.
        texts: Fingerprints of the texts that it read itself.
        versions: Of the libraries that decide its numbers.
    """

    stage: str
    fingerprint: str
    record_sha256: str
    num_parameters: int
    made_from: tuple[str, ...]
    texts: tuple[str, ...] = ()
    versions: dict[str, str] = Field({})


class LineageRecord(Record):
    """A run's artifacts by directory, relative to the run's."""

    schema_id: Literal["compress-export/lineage/1"] = Field(SCHEMA, alias="schema")
    teacher: BaseModelRecord
    steps: dict[RelativeName, Step]


def lineage_of(
    source: ModelSource, name: str, teacher: ModelArtifact, made: Mapping[str, ModelArtifact]
) -> LineageRecord:
    """Where artifacts come from: `made` are a run's by directory, `name` is how others call the teacher."""
    gguf = Path(source.location) if source.kind == "gguf" else None
    is_revision = source.kind == "hub" and teacher.path.parent.name == _SNAPSHOTS
    places = {teacher.fingerprint: TEACHER}
    places |= {artifact.fingerprint: place for place, artifact in made.items()}
    return LineageRecord(
        teacher=BaseModelRecord(
            name=name,
            kind=source.kind,
            revision=teacher.path.name if is_revision else None,
            file_sha256=sha256_of_file(gguf) if gguf else None,
            fingerprint=teacher.fingerprint,
            num_parameters=teacher.num_parameters,
            terms=_terms(source, teacher.path, gguf),
        ),
        steps={place: _step(artifact, places) for place, artifact in made.items()},
    )


def _terms(source: ModelSource, directory: Path, gguf: Path | None) -> Terms:
    """Another run's student keeps the terms of what that run started from."""
    earlier = read_lineage(directory.parent) if directory.name == STUDENT else None
    if earlier is not None:
        return earlier.teacher.terms
    return terms_of(source.location if source.kind == "hub" else None, directory, gguf=gguf)


def inputs_of(artifact: ModelArtifact) -> list[str]:
    """Fingerprints of what an artifact was made from, its source first."""
    inputs = artifact.inputs
    others = inputs.get("others") or {}
    found = [inputs.get("source"), inputs.get("teacher"), *others.values()]
    return [str(one) for one in dict.fromkeys(found) if one is not None]


def write_lineage(out_dir: Path, record: LineageRecord) -> None:
    """Write `lineage.json`."""
    write_json(out_dir / LINEAGE_FILE, record.to_json())


def read_lineage(out_dir: Path) -> LineageRecord | None:
    """The lineage of a run; None where it has none yet.

    Raises:
        VerificationError: when it cannot be read.
    """
    file, what = out_dir / LINEAGE_FILE, "the lineage"
    if not file.is_file():
        return None
    return as_record(LineageRecord, read_json_mapping(file, what=what), what=what, where=file)


def _step(artifact: ModelArtifact, places: Mapping[str, str]) -> Step:
    data = artifact.inputs.get("data") or {}
    return Step(
        stage=artifact.stage,
        fingerprint=artifact.fingerprint,
        record_sha256=sha256_of_file(artifact.path / ARTIFACT_FILE),
        num_parameters=artifact.num_parameters,
        made_from=tuple(places.get(one, f"sha256:{one}") for one in inputs_of(artifact)),
        texts=tuple(sorted({str(one) for one in data.values()})),
        versions={name: str(number) for name, number in (artifact.inputs.get("versions") or {}).items()},
    )
