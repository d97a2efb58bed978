"""Records whose names lead elsewhere: what is there is neither read nor deleted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compressor.bundle.lineage import LINEAGE_FILE, read_lineage
from compressor.core.errors import VerificationError
from compressor.runs.artifact import ModelArtifact, record_files, sealed, sha256_of_file
from compressor.runs.cleaned import LARGE_BYTES, clean
from compressor.runs.manifest import MANIFEST_FILE, read_manifest
from compressor.runs.manifest import SCHEMA as MANIFEST

OUTSIDE = ("../thesis.bin", "a/../../thesis.bin", "{absolute}", "..", "", "a\0b")


@pytest.fixture
def thesis(tmp_path: Path) -> Path:
    file = tmp_path / "thesis.bin"
    file.write_bytes(b"x" * 2 * LARGE_BYTES)
    return file


def named(name: str, thesis: Path) -> str:
    return name.format(absolute=thesis)


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_file_outside_of_a_cleaned_stage_is_deleted(name: str, thesis: Path, tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    stage.mkdir()
    (stage / "weights.bin").write_bytes(b"y" * 2 * LARGE_BYTES)
    files = record_files(stage)
    files[named(name, thesis)] = {"sha256": sha256_of_file(thesis), "bytes": thesis.stat().st_size}
    ModelArtifact(
        path=stage, stage="prune", fingerprint="0", lineage=("source",), num_parameters=1, files=files
    ).write()
    with pytest.raises(VerificationError, match="record of files is corrupt"):
        clean(stage)
    assert thesis.stat().st_size == 2 * LARGE_BYTES
    assert (stage / "weights.bin").exists()


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_stage_outside_of_a_run_is_taken_for_its_own(name: str, thesis: Path, tmp_path: Path) -> None:
    step = {
        "stage": "prune",
        "fingerprint": "0",
        "record_sha256": "0",
        "num_parameters": 1,
        "made_from": [],
        "texts": [],
        "versions": {},
    }
    teacher = {
        "name": "base",
        "kind": "directory",
        "fingerprint": "0",
        "num_parameters": 1,
        "terms": {"identifier": "mit", "known_from": "its card"},
    }
    record: dict[str, Any] = {"schema": "compress-export/lineage/1", "teacher": teacher, "steps": {"a": step}}
    (tmp_path / LINEAGE_FILE).write_text(json.dumps(record))
    assert read_lineage(tmp_path) is not None
    record["steps"] = {named(name, thesis): step}
    (tmp_path / LINEAGE_FILE).write_text(json.dumps(record))
    with pytest.raises(VerificationError, match="leads out of the directory"):
        read_lineage(tmp_path)


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_manifest_names_nothing_outside_of_its_run(name: str, thesis: Path, tmp_path: Path) -> None:
    record = {"schema": MANIFEST, "created": "now", "files": {named(name, thesis): "0"}}
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(sealed(record)))
    with pytest.raises(VerificationError, match="leads out of the directory"):
        read_manifest(tmp_path)
