"""What stages hand to each other: a directory and the record of how it came to be.

`artifact.json` holds no time, host or path, so equal work leaves equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.errors import UsageError, VerificationError
from compressor.json_files import read_json_mapping

ARTIFACT_FILE = "artifact.json"
SCHEMA = "compress-export/artifact/1"
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class ModelArtifact:
    """A directory made by a stage.

    Attributes:
        path: The directory; for models a Hugging Face checkpoint.
        stage: The stage that wrote it.
        fingerprint: sha256 over everything that decided its content.
        lineage: Stages from the original model to this one.
        num_parameters: All parameters, embeddings included.
        texts: Fingerprints of the texts read on the way to it, for training or calibration.
        inputs: What the fingerprint was made of, to name what changed.
        details: Figures of the stage worth keeping (seconds and hosts are the manifest's).
    """

    path: Path
    stage: str
    fingerprint: str
    lineage: tuple[str, ...]
    num_parameters: int
    texts: tuple[str, ...] = ()
    inputs: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def write(self) -> None:
        """Write `artifact.json` into the directory."""
        record = {
            "schema": SCHEMA,
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            "lineage": list(self.lineage),
            "num_parameters": self.num_parameters,
            "texts": list(self.texts),
            "inputs": self.inputs,
            "details": self.details,
        }
        write_json(self.path / ARTIFACT_FILE, record)


def read_artifact(path: Path) -> ModelArtifact:
    """Read the artifact that a stage left in `path`.

    Raises:
        UsageError: when the directory holds none.
        VerificationError: when its record cannot be read.
    """
    file = path / ARTIFACT_FILE
    if not file.is_file():
        raise UsageError("this directory holds no artifact", where=str(path), expected=ARTIFACT_FILE)
    record = read_json_mapping(file, what="the artifact's record")
    try:
        return ModelArtifact(
            path=path,
            stage=record["stage"],
            fingerprint=record["fingerprint"],
            lineage=tuple(record["lineage"]),
            num_parameters=record["num_parameters"],
            texts=tuple(record.get("texts", ())),
            inputs=record["inputs"],
            details=record["details"],
        )
    except (KeyError, TypeError) as error:
        raise VerificationError("the artifact's record is corrupt", where=str(file), found=error) from error


def fingerprint_of(inputs: dict[str, Any]) -> str:
    """sha256 of the canonical JSON of `inputs`."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """sha256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write JSON through a temporary file, synced and renamed."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sync_tree(directory: Path) -> None:
    """Flush every file of a directory, then the directories, to disk."""
    for path in [*sorted(directory.rglob("*")), directory]:
        if path.is_symlink():
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
