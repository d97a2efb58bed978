"""Deleting in one step: a directory is renamed first, so that no kill leaves half of it under its name."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

_SUFFIX = ".discarded-"
_DISCARDED = re.compile(re.escape(_SUFFIX) + r"\d+$")


def discard(path: Path) -> None:
    """Remove a directory or a file, whole or not at all as its name shows it."""
    if path.is_symlink() or path.is_file():
        path.unlink()
        return
    if not path.exists():
        return
    numbers = itertools.count()
    target = next(
        name for number in numbers if not (name := path.with_name(f"{path.name}{_SUFFIX}{number}")).exists()
    )
    path.rename(target)
    shutil.rmtree(target)


def remove_leftovers(directory: Path, *, of: str | None = None) -> None:
    """Finish what a kill interrupted: discards of the entry `of` of a directory, or of any of them."""
    for path in list(directory.glob(f"*{_SUFFIX}*")) if directory.is_dir() else ():
        name, found = _DISCARDED.subn("", path.name)
        if found and of in (None, name) and path.is_dir():
            shutil.rmtree(path)


def is_leftover(path: Path) -> bool:
    """Whether a kill left this name while something was deleted."""
    return _DISCARDED.search(path.name) is not None


def discard_inside(directory: Path, *, but: tuple[str, ...] = ()) -> None:
    """Remove what is in a directory, one entry after the other, but for some names."""
    for path in list(directory.iterdir()):
        if path.name not in but:
            discard(path)
