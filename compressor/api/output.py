"""Whether a stage can write its output where it is to go."""

from __future__ import annotations

import os
from pathlib import Path

from compressor.core.errors import ResourceError, UsageError
from compressor.runs.artifact import ARTIFACT_FILE, STAGE_FILE
from compressor.runs.stage import PARTIAL_SUFFIX


def require_output(out_dir: Path, *, resume: bool, overwrite: bool = False) -> bool:
    """Refuse a path that no stage can write to; returns whether a stage wrote, or began to write, there.

    Raises:
        UsageError: a path without a name, a link, a file, a directory that is not ours, or nothing to resume.
        ResourceError: when its parent must be written and cannot be; finished work is only read.
    """
    if out_dir.name in ("", ".."):
        raise UsageError(
            "the output directory needs a name of its own",
            where=str(out_dir),
            hint="name a directory such as ./pruned",
        )
    partial = out_dir.with_name(out_dir.name + PARTIAL_SUFFIX)
    is_finished = (out_dir / ARTIFACT_FILE).is_file()
    is_ours = is_finished or (partial / STAGE_FILE).is_file()
    if resume and not is_ours:
        raise UsageError("there is nothing to resume", where=str(out_dir), hint="leave --resume out")
    if out_dir.is_symlink() and not is_finished:
        raise UsageError(
            "the output path is a link",
            where=str(out_dir),
            hint="name the directory that it points to, or a new one",
        )
    for path in (out_dir, partial):
        if path.exists() and not path.is_dir():
            raise UsageError("the output path is a file", where=str(path), hint="choose another --output-dir")
        # What a kill in the first moment leaves is a temporary file of ours.
        if not is_ours and path.is_dir() and any(inner.suffix != ".tmp" for inner in path.iterdir()):
            raise UsageError(
                "the output directory is in use: it holds files that this tool did not write",
                where=str(path),
                hint="choose another --output-dir",
            )
    if overwrite or not is_finished:
        _require_writable_parent(out_dir)
    return is_ours


def _require_writable_parent(out_dir: Path) -> None:
    parent = out_dir.absolute().parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise UsageError(
            "a part of the output directory's path is a file",
            where=str(parent),
            hint="choose another --output-dir",
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ResourceError(
            "the output directory cannot be made",
            where=str(parent),
            found="not writable",
            hint="choose another --output-dir, or give this directory write permission",
        )
