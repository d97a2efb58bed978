"""What a stage command is refused for before a model is downloaded, converted, hashed or loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compressor.core.console import Console
from compressor.core.errors import ResourceError, UsageError
from compressor.core.processes import on_main
from compressor.data.checks import check_responses, check_texts
from compressor.models.load import resolve_source
from compressor.recipe.recipe import Distill
from compressor.runs.artifact import ARTIFACT_FILE, STAGE_FILE
from compressor.runs.stage import PARTIAL_SUFFIX


def check_early(
    out_dir: Path,
    flags: dict[str, Any],
    console: Console,
    *,
    models: Iterable[str],
    texts: Iterable[str] = (),
    training: Distill | None = None,
) -> None:
    """Refuse an output directory, a MODEL or a text that cannot be used.

    Args:
        out_dir: Where a stage is to write.
        flags: The command's options.
        console: Warnings of rows that are skipped or repaired.
        models: Every MODEL of the command.
        texts: Every SOURCE that it reads; local ones are read whole.
        training: What is trained with, whose texts must hold responses where the loss is on them.

    Raises:
        UsageError, UnsupportedError, ResourceError, NetworkError: for what would end the work later.
    """
    on_main(lambda: require_output(out_dir, resume=flags["resume"], overwrite=flags["overwrite"]))
    for model in models:
        resolve_source(model)
    on_main(lambda: check_texts(sorted(set(texts)), console))
    if training is not None and training.loss_on == "responses":
        on_main(lambda: check_responses([domain.data for domain in training.mixture()]))


def require_output(out_dir: Path, *, resume: bool, overwrite: bool = False) -> bool:
    """Refuse a path that no stage can write to; returns whether a stage wrote, or began to write, there.

    Raises:
        UsageError: a path without a name, a link, a file, a directory that is not ours, or nothing to resume.
        ResourceError: when its parent must be written and cannot be; finished work is only read.
    """
    if out_dir.name in ("", ".."):
        raise UsageError(
            "the output directory needs a name of its own", where=str(out_dir), expected="such as ./pruned"
        )
    partial = out_dir.with_name(out_dir.name + PARTIAL_SUFFIX)
    is_finished = (out_dir / ARTIFACT_FILE).is_file()
    is_ours = is_finished or (partial / STAGE_FILE).is_file()
    if resume and not is_ours:
        raise UsageError("there is nothing to resume", where=str(out_dir), hint="leave --resume out")
    if out_dir.is_symlink() and not is_finished:
        raise UsageError(
            "the output path is a link", where=str(out_dir), expected="the directory itself, or a new one"
        )
    for path in (out_dir, partial):
        if path.exists() and not path.is_dir():
            raise UsageError("the output path is a file", where=str(path))
        # What a kill in the first moment leaves is a temporary file of ours.
        if not is_ours and path.is_dir() and any(inner.suffix != ".tmp" for inner in path.iterdir()):
            raise UsageError(
                "the output directory is in use", where=str(path), hint="--overwrite, or another directory"
            )
    if overwrite or not is_finished:
        _require_writable_parent(out_dir)
    return is_ours


def _require_writable_parent(out_dir: Path) -> None:
    parent = out_dir.absolute().parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise UsageError("the output path leads through what is no directory", where=str(parent))
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ResourceError("the output directory cannot be made", where=str(parent), found="not writable")
