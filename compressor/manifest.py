"""The record of a run: what ran where, with which versions, how long, and what was warned of.

Also the claim on a run directory: only a directory with our manifest, or an empty one, is written.
"""

from __future__ import annotations

import fcntl
import platform
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compressor import __version__
from compressor.artifact import write_json
from compressor.errors import CompressExportError, ResourceError, UsageError
from compressor.json_files import read_json_mapping
from compressor.processes import is_main
from compressor.stage import StageOutcome

MANIFEST_FILE = "manifest.json"
LOCK_FILE = ".lock"
SCHEMA = "compress-export/manifest/1"
_RECORDED_LIBRARIES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "nvidia-modelopt",
    "onnx",
    "onnxruntime",
    "onnxruntime-genai",
    "tensorrt-llm",
    "tensorrt",
    "safetensors",
    "numpy",
)


def versions() -> dict[str, str]:
    """Versions of this tool, Python and the libraries that matter."""
    found = {"compress-export": __version__, "python": platform.python_version()}
    for name in _RECORDED_LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def peak_memory_bytes() -> int:
    """The process's largest resident set so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Manifest:
    """`manifest.json` of one run directory, rewritten after every stage."""

    def __init__(self, out_dir: Path, record: dict[str, Any]) -> None:
        self._path = out_dir / MANIFEST_FILE
        self.record = record

    def add_stage(self, outcome: StageOutcome, *, where: str) -> None:
        """Record a stage; a skipped one keeps the figures of the process that ran it.

        Args:
            outcome: What the stage made and cost.
            where: Its directory, relative to the run directory.
        """
        stages: dict[str, Any] = self.record["stages"]
        artifact = outcome.artifact
        if outcome.skipped and where in stages:
            return
        stages[where] = {
            "stage": artifact.stage,
            "fingerprint": artifact.fingerprint,
            "seconds": round(outcome.seconds, 3),
            "peak_memory_bytes": peak_memory_bytes(),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "warnings": list(outcome.warnings),
        }
        self.write()

    def update(self, **fields: Any) -> None:
        """Set top-level fields and write."""
        self.record.update(fields)
        self.write()

    def write(self) -> None:
        """Write the file, synced; the main process does it for all."""
        if is_main():
            write_json(self._path, self.record)


@contextmanager
def open_run_directory(out_dir: Path, *, resume: bool, overwrite: bool) -> Iterator[Manifest]:
    """Claim a run directory and read or begin its manifest; the main process does it for all.

    Args:
        out_dir: The directory; created if absent.
        resume: Assert that there is something to resume.
        overwrite: Start anew in a directory of ours.

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
    with _locked(out_dir):
        is_new = not is_ours
        if overwrite and is_ours:
            _empty(out_dir, but=LOCK_FILE)
            is_ours = False
        record = _read(file) if is_ours else _new_record()
        manifest = Manifest(out_dir, record)
        manifest.update(versions=versions())
        try:
            yield manifest
        except CompressExportError:
            if is_new and not record["stages"]:  # nothing was made that better input could continue
                _empty(out_dir)
                if not existed:
                    out_dir.rmdir()
            raise


def claim_directory(out_dir: Path, *, is_ours: bool, resume: bool, marker: str = MANIFEST_FILE) -> None:
    """Refuse a directory that holds something else, or nothing to resume.

    `marker` is the file that makes a directory ours.

    Raises:
        UsageError: see above.
        ResourceError: when it cannot be created.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise UsageError("the output path is a file", where=str(out_dir))
    if resume and not is_ours:
        raise UsageError("there is nothing to resume", where=str(out_dir), hint="leave --resume out")
    begun = {LOCK_FILE, f"{marker}.tmp"}  # all that a kill in the first moment leaves
    if not is_ours and out_dir.exists() and any(path.name not in begun for path in out_dir.iterdir()):
        raise UsageError(
            "the output directory is in use and holds nothing of ours",
            where=str(out_dir),
            expected=f"an empty directory, or one with {marker}",
        )
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            "the output directory cannot be made", where=str(out_dir), found=error.strerror
        ) from error


@contextmanager
def _locked(out_dir: Path) -> Iterator[None]:
    try:
        lock = (out_dir / LOCK_FILE).open("w")
    except OSError as error:
        raise ResourceError(
            "the output directory cannot be written", where=str(out_dir), found=error.strerror
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError("another process works in this output directory", where=str(out_dir)) from error
        yield


def _empty(directory: Path, but: str | None = None) -> None:
    for path in directory.iterdir():
        if path.name != but:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _new_record() -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "stages": {},
    }


def _read(file: Path) -> dict[str, Any]:
    record = read_json_mapping(file, what="the manifest")
    if record.get("schema") != SCHEMA:
        raise UsageError(
            "the manifest was written by another version", expected=SCHEMA, found=record.get("schema")
        )
    return record
