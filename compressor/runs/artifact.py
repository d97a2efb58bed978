"""What stages hand to each other: a directory and the record of how it came to be, file by file.

`artifact.json` holds no time, host or path, so equal work leaves equal bytes. It names every other file of
its directory with its size and sha256: what is used again later can be told from what was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from compressor.choices.formats import FORMATS
from compressor.core.errors import UsageError, VerificationError
from compressor.core.json_files import read_json_mapping, refuse_other_version
from compressor.core.regular_files import stays_below
from compressor.runs.redo import Redo, redo_by_command

ARTIFACT_FILE = "artifact.json"
# What an unfinished stage was begun with; it goes when the stage is published.
STAGE_FILE = "stage.json"
SCHEMA = "compress-export/artifact/2"
_NOT_RECORDED = (ARTIFACT_FILE, STAGE_FILE)
# Curves for people, with times and host names in them; nothing reads them.
LOGS = "tensorboard"
# Made by file systems and file managers wherever somebody looked; nobody's data.
_OF_FILE_SYSTEMS = (".DS_Store", "._*", ".nfs*", ".fuse_hidden*", "Thumbs.db", "desktop.ini")
_REDO = "--restart-from STAGE in a run, --overwrite for a stage of its own"
_CHUNK_BYTES = 1 << 22
_MAX_HEADER_BYTES = 100 << 20  # the format's own limit
_HASHED_AT_A_TIME = 4


Value = TypeVar("Value")


class FileRecord(TypedDict):
    """What is recorded of one file, in `artifact.json` as in memory."""

    sha256: str
    bytes: int


Files = dict[str, FileRecord]


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
        files: Every file of the directory but this record, by its relative name.
    """

    path: Path
    stage: str
    fingerprint: str
    lineage: tuple[str, ...]
    num_parameters: int
    texts: tuple[str, ...] = ()
    inputs: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    files: Files = field(default_factory=dict)

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
            "files": self.files,
        }
        write_json(self.path / ARTIFACT_FILE, sealed(record))


def read_artifact(path: Path, *, redo: str | Redo = redo_by_command) -> ModelArtifact:
    """Read the artifact that a stage left in `path`; `redo` says how to make it again, for errors.

    Raises:
        UsageError: when the directory holds none.
        VerificationError: when its record cannot be read, was changed, or is of another version.
    """
    file = path / ARTIFACT_FILE
    if not file.is_file():
        raise UsageError(
            "this directory was not written by a stage of this tool",
            where=str(path),
            expected=ARTIFACT_FILE,
            hint="name the output directory of a stage",
        )
    what = "the artifact's record"
    record = read_json_mapping(file, what=what)
    if not isinstance(redo, str):
        stage = record.get("stage")
        redo = redo(stage, path) if isinstance(stage, str) else _REDO
    refuse_other_version(record, SCHEMA, what=what, where=file, hint=f"make it again: {redo}")
    if record.get("schema") != SCHEMA:
        raise VerificationError(
            "this is no record of an artifact",
            where=str(file),
            expected=SCHEMA,
            found=record.get("schema"),
            hint=f"make it again: {redo}",
        )
    unsealed(record, file, what=what, hint=f"make it again: {redo}")
    try:
        return ModelArtifact(
            path=path,
            stage=_typed(record, "stage", str),
            fingerprint=_typed(record, "fingerprint", str),
            lineage=tuple(_typed(record, "lineage", list)),
            num_parameters=_typed(record, "num_parameters", int),
            texts=tuple(_typed(record, "texts", list)),
            inputs=_typed(record, "inputs", dict),
            details=_typed(record, "details", dict),
            files=read_file_records(record, file),
        )
    except (KeyError, TypeError) as error:
        raise VerificationError(
            "the artifact's record is corrupt",
            where=str(file),
            found=f"{type(error).__name__}: {error}",
            hint=f"make it again: {redo}",
        ) from error


def read_file_records(record: Mapping[str, Any], file: Path) -> Files:
    """The files that a record names.

    Raises:
        VerificationError: when `file`, which holds the record, does not name them as `record_files` does.
    """

    def refuse(found: str) -> VerificationError:
        return VerificationError(
            "the record of files is corrupt", where=str(file), found=found, hint=f"make it again: {_REDO}"
        )

    try:
        files = {
            str(name): FileRecord(sha256=str(value["sha256"]), bytes=int(value["bytes"]))
            for name, value in record["files"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise refuse(f"{type(error).__name__}: {error}") from error
    if outside := [name for name in files if not stays_below(name)]:
        raise refuse(f"{ascii(outside[0])[:80]} leads out of the directory")
    return files


def _typed(record: Mapping[str, object], name: str, kind: type[Value]) -> Value:
    value = record[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def record_files(directory: Path, *, but: tuple[str, ...] = ()) -> Files:
    """Size and sha256 of every file below `directory`, by relative name; records of ours are left out.

    So are the files, and those of the directories, that `but` names.

    Reads every file once; right after writing they come from the page cache (about a second per
    gigabyte without SHA instructions, half of that with them; several files at a time).
    """
    names = [name for name in _names(directory, but) if (directory / name).is_file()]
    with ThreadPoolExecutor(_HASHED_AT_A_TIME) as pool:
        digests = list(pool.map(lambda name: sha256_of_file(directory / name), names))
    return {
        name: FileRecord(sha256=digest, bytes=(directory / name).stat().st_size)
        for name, digest in zip(names, digests, strict=True)
    }


def _names(directory: Path, but: tuple[str, ...]) -> list[str]:
    """Relative names of all that is there but directories; that of a linked directory ends in a slash."""
    names = []
    for path in directory.rglob("*"):
        is_linked = path.is_symlink()
        if not _is_passing(path) and (is_linked or not path.is_dir()):
            end = "/" if is_linked and path.is_dir() else ""
            names.append(path.relative_to(directory).as_posix() + end)
    recorded = (name for name in sorted(names) if not name.startswith(f"{LOGS}/"))
    return [name for name in recorded if not {name, name.split("/")[0]} & {*_NOT_RECORDED, *but}]


def _is_passing(path: Path) -> bool:
    """Whether a file is a temporary one of ours, or one that a file system leaves."""
    return path.suffix == ".tmp" or any(fnmatchcase(path.name, pattern) for pattern in _OF_FILE_SYSTEMS)


def _is_built_later(stage: str, name: str) -> bool:
    """Whether the script that an export without a builder leaves makes this file."""
    row = FORMATS.get(stage.removeprefix("export-"))
    return row is not None and any(fnmatchcase(name, path) for path in row.engine_files)


def check_files(
    directory: Path,
    files: Files,
    *,
    contents: bool,
    redo: str = _REDO,
    but: tuple[str, ...] = (),
    may_have_more: bool = False,
    stage: str = "",
) -> None:
    """Refuse files that are missing, new, of another size or changed since they were recorded.

    What is no file, a linked directory among it, is as new as a file would be.

    Args:
        directory: Where they are.
        files: What is recorded of them.
        contents: Whether to compare sha256 too; else sizes, and that the headers of safetensors files fit.
        redo: How to make them again, for the error's hint.
        but: Names that the record does not cover.
        may_have_more: Accept files that are not recorded, such as the page of a published model.
        stage: The stage that wrote them; beside an export an engine may have been built since.

    Raises:
        VerificationError: naming the first such file.
    """
    there = [] if may_have_more else _names(directory, but)
    for name in sorted({*files, *there}):
        problem = _size_problem(directory / name, files.get(name))
        if problem is not None and not (name not in files and _is_built_later(stage, name)):
            what, expected, found = problem
            hint = f"make it again: {redo}" if name in files else f"remove {directory / name}"
            raise _refused(what, directory / name, expected, found, hint)
    if not contents:
        return
    with ThreadPoolExecutor(_HASHED_AT_A_TIME) as pool:
        digests = pool.map(lambda name: sha256_of_file(directory / name), files)
        for name, digest in zip(files, digests, strict=True):
            expected = files[name]["sha256"]
            if digest != expected:
                what = "a file of finished work has changed"
                hint = f"make it again: {redo}"
                raise _refused(what, directory / name, f"sha256 {expected}", f"sha256 {digest}", hint)


def _size_problem(path: Path, record: FileRecord | None) -> tuple[str, str, str] | None:
    """What is wrong with a file before its contents are read: a sentence, expected and found."""
    if record is None:
        if path.is_file():
            return "a file was added to finished work", "no such file", "a file"
        kind = "a link to a directory" if path.is_dir() else "no regular file"
        return "an entry was added to finished work", "no such entry", kind
    expected = f"{record['bytes']:,} bytes"
    if not path.is_file():
        return "a file of finished work is missing", expected, "no file"
    size = path.stat().st_size
    if size != record["bytes"]:
        return "a file of finished work has another size", expected, f"{size:,} bytes"
    if path.suffix == ".safetensors" and (problem := header_problem(path)):
        return "a weight file of finished work is corrupt", "a header that fits the file", problem
    return None


def _refused(what: str, path: Path, expected: str, found: str, hint: str) -> VerificationError:
    return VerificationError(what, where=str(path), expected=expected, found=found, hint=hint)


def header_problem(path: Path) -> str | None:
    """What is wrong with the header of a safetensors file: its tensors must fill the file exactly."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:  # noqa: PLR2004 - the length of the header, as 64 bits
            return f"{len(prefix)} bytes"
        length = struct.unpack("<Q", prefix)[0]
        if length > min(size - 8, _MAX_HEADER_BYTES):
            return f"a header of {length:,} bytes in a file of {size:,}"
        encoded = file.read(length)
    try:
        header = json.loads(encoded)
        spans = sorted(tuple(entry["data_offsets"]) for key, entry in header.items() if key != "__metadata__")
        ends = [0, *(end for _, end in spans)]
        if any(start != end for (start, _), end in zip(spans, ends, strict=False)):
            return "tensors that overlap or leave gaps"
        return None if ends[-1] == size - 8 - length else "tensors that do not end where the file does"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"a header that is no index of tensors ({type(error).__name__})"


def fingerprint_of(inputs: Mapping[str, object]) -> str:
    """sha256 of the canonical JSON of `inputs`."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def sealed(record: Mapping[str, object]) -> dict[str, object]:
    """A record with a sum over itself, by which it shows that it was changed by hand or by a fault."""
    plain = json.loads(json.dumps(record))
    return {**plain, "seal": fingerprint_of(plain)}


def unsealed(record: Mapping[str, Value], file: Path, *, what: str, hint: str) -> dict[str, Value]:
    """What was sealed; refuses a record that is not as `sealed` made it.

    Raises:
        VerificationError: naming the file.
    """
    plain = {name: value for name, value in record.items() if name != "seal"}
    expected = fingerprint_of(plain)
    if record.get("seal") != expected:
        raise VerificationError(
            f"{what} was edited after it was written",
            where=str(file),
            expected=f"seal {expected}",
            found=f"seal {record.get('seal')}",
            hint=hint,
        )
    return plain


def sha256_of_file(path: Path) -> str:
    """sha256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write JSON as `write_text` writes text."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 through a temporary file, synced and renamed.

    A link or FIFO of either name is replaced, not followed or waited for.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    with temporary.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sync_tree(directory: Path) -> None:
    """Flush every file of a directory, then the directories, to disk."""
    for path in [*sorted(directory.rglob("*")), directory]:
        if not path.is_symlink():
            sync(path)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
