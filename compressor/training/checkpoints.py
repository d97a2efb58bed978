"""Checkpoints of a training: complete only when synced and recorded, and compared before they are loaded.

The mark is written last. It names size and sha256 of every file, so that a checkpoint that a disk or a
hand has damaged is passed over for the older one, by name.
"""

from __future__ import annotations

import re
from pathlib import Path

from compressor.core.console import Console
from compressor.core.errors import VerificationError
from compressor.core.json_files import read_json_mapping, refuse_other_version
from compressor.core.processes import on_main
from compressor.runs.artifact import (
    check_files,
    read_file_records,
    record_files,
    sealed,
    sync_tree,
    unsealed,
    write_json,
)
from compressor.runs.discarding import discard, remove_leftovers
from compressor.runs.stage import sync_tree_parent

COMPLETE_MARK = "complete"
NUM_KEPT = 2
_SCHEMA = "compress-export/training-checkpoint/1"
_STEP = re.compile(r"checkpoint-(\d+)")
_REDO = "--restart-from its stage in a run, --overwrite for the command of the stage"


def mark_complete(directory: Path) -> None:
    """Sync a checkpoint that every process has written, record its files, and drop the oldest of three."""
    sync_tree(directory)
    files = record_files(directory, but=(COMPLETE_MARK,))
    write_json(directory / COMPLETE_MARK, sealed({"schema": _SCHEMA, "files": files}))
    sync_tree_parent(directory)
    marked = [path for path in _newest_first(directory.parent) if (path / COMPLETE_MARK).is_file()]
    for path in marked[NUM_KEPT:]:
        discard(path)


def last_complete_checkpoint(checkpoints: Path, console: Console) -> Path | None:
    """The newest checkpoint that is as it was written; unfinished and damaged newer ones are removed.

    Raises:
        VerificationError: when there are some, but all are damaged.
    """
    return on_main(lambda: _choose(checkpoints, console))


def _choose(checkpoints: Path, console: Console) -> Path | None:
    remove_leftovers(checkpoints)
    damaged: dict[Path, VerificationError] = {}
    for path in _newest_first(checkpoints):
        if not (path / COMPLETE_MARK).is_file():
            console.warn(f"{path.name} was not finished and is removed")
            discard(path)
            continue
        problem = _damage(path)
        if problem is None:
            for other in damaged:
                discard(other)
            return path
        damaged[path] = problem
        file = Path(problem.where or path).name
        console.warn(f"{path.name} is damaged and not used: {file}: {problem.what}")
    if not damaged:
        return None
    newest, problem = next(iter(damaged.items()))
    raise VerificationError(
        "every checkpoint of this training is damaged",
        where=problem.where or str(newest),
        expected=problem.expected,
        found=problem.found,
        hint=f"start the training again: {_REDO}",
    )


def _damage(directory: Path) -> VerificationError | None:
    mark = directory / COMPLETE_MARK
    what = "the mark of a complete checkpoint"
    try:
        marked = read_json_mapping(mark, what=what)
        refuse_other_version(marked, _SCHEMA, what=what, where=mark, hint=_REDO)
        record = unsealed(marked, mark, what=what, hint=_REDO)
        check_files(directory, read_file_records(record, mark), contents=True, but=(COMPLETE_MARK,))
    except VerificationError as error:
        return error
    return None


def _newest_first(checkpoints: Path) -> list[Path]:
    found = [(int(name[1]), path) for path in checkpoints.glob("*") if (name := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]
