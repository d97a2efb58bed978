"""A directory's whole content in memory: taken, put back, and compared."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tests.faults.points import plain_name

# Curves for people, with times and host names in their names and in them; nothing reads them.
_CURVES = "*tensorboard*"
_FUTURE_S = 365 * 86_400

_blobs: dict[str, bytes] = {}


@dataclass(frozen=True)
class Entry:
    """What is at a path: the sha256 of a file, the target of a link, or a directory."""

    kind: str
    content: str = ""
    mode: int = 0


Tree = dict[str, Entry]


def take(root: Path) -> Tree:
    """Everything below a directory, by relative path; contents are kept once."""
    tree: Tree = {}
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = Path(directory, name)
            relative = str(path.relative_to(root))
            if path.is_symlink():
                tree[relative] = Entry("link", str(path.readlink()))
            elif path.is_dir():
                tree[relative] = Entry("directory")
            else:
                content = path.read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                _blobs.setdefault(digest, content)
                tree[relative] = Entry("file", digest, path.stat().st_mode & 0o777)
    return tree


def put(root: Path, tree: Tree, *, from_the_future: bool = False) -> None:
    """Make a directory's content this, all of it; its files as if written in a year, if that is asked for."""
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for relative in sorted(tree):
        entry, path = tree[relative], root / relative
        if entry.kind == "directory":
            path.mkdir()
        elif entry.kind == "link":
            path.symlink_to(entry.content)
        else:
            path.write_bytes(_blobs[entry.content])
            path.chmod(entry.mode)
        if from_the_future and entry.kind == "file":
            time = path.stat().st_mtime + _FUTURE_S
            os.utime(path, (time, time))


def content_of(entry: Entry) -> bytes:
    return _blobs[entry.content]


def with_file(tree: Tree, name: str, content: bytes | None) -> Tree:
    """The same with another content of a file, or without it."""
    changed = dict(tree)
    if content is None:
        del changed[name]
        return changed
    digest = hashlib.sha256(content).hexdigest()
    _blobs[digest] = content
    changed[name] = Entry("file", digest, tree[name].mode)
    return changed


def key_of(tree: Tree) -> str:
    """The same for equal content."""
    return hashlib.sha256(repr(sorted(tree.items())).encode()).hexdigest()


def is_curve(name: str) -> bool:
    """Whether TensorBoard writes this file: when and how often goes by a clock."""
    return fnmatchcase(name, _CURVES)


def difference(found: Tree, expected: Tree, *, measured: Iterable[str] = ()) -> str:
    """The first difference, or nothing; of files with times in them only that they are there."""
    lenient = (_CURVES, *measured)
    here, there = ({plain_name(name): entry for name, entry in tree.items()} for tree in (found, expected))
    for name in sorted({*here, *there}):
        one, other = here.get(name), there.get(name)
        if is_curve(name):
            continue
        if one is None or other is None:
            return f"{name} is {'missing' if one is None else 'left over'}"
        is_lenient = any(fnmatchcase(name, pattern) for pattern in lenient)
        if one.kind != other.kind or (one.content != other.content and not is_lenient):
            return f"{name} differs"
    return ""


def forget() -> None:
    """Let go of every content: no tree can be put back any more."""
    _blobs.clear()
