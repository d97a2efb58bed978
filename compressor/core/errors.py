"""One tree of errors; every class carries the exit code of the command line.

A message says what failed, where, what was expected and found, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class CompressExportError(Exception):
    """Base of every error this project raises on purpose.

    Args:
        what: What failed, one sentence.
        where: Stage, tensor, field or path.
        expected: What would have been right.
        found: What was there instead.
        hint: The next command or action.

    Attributes:
        usual_hint: What a person is told to do where an error of this class has no hint of its own.
    """

    exit_code = 1
    usual_hint: ClassVar[str | None] = None

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.found = found
        self.hint = hint
        fields = {"where": where, "expected": expected, "found": found, "try": hint}
        given = [f"  {name}: {value}" for name, value in fields.items() if value is not None]
        super().__init__("\n".join([what, *given]))


class UsageError(CompressExportError):
    """An option, path, alias, recipe, target or text that cannot be used."""

    exit_code = 2
    usual_hint = "correct what is named here; the command's --help describes its options"


class UnsupportedError(CompressExportError):
    """A model type, shape or state (already quantised) that is not supported."""

    exit_code = 3


class DependencyError(CompressExportError):
    """A missing library or executable, or a wrong version of one."""

    exit_code = 4


class ResourceError(CompressExportError):
    """Not enough memory or disk, or a read-only directory."""

    exit_code = 5


class AccuracyGateError(CompressExportError):
    """A model is less accurate than the gate allows."""

    exit_code = 6


class SpeedGateError(CompressExportError):
    """A model is slower or larger than the gate allows."""

    exit_code = 7


class VerificationError(CompressExportError):
    """An artifact differs from what it was made from, or holds corrupt or non-finite weights."""

    exit_code = 8
    usual_hint = (
        "make it again with --overwrite, in a run with --restart-from its stage; a download, download it "
        "again; compress-export verify DIR checks the rest of a directory"
    )


class NetworkError(CompressExportError):
    """The hub is out of reach, or refuses access."""

    exit_code = 9


INTERRUPTED_EXIT_CODE = 130
CLOSED_OUTPUT_EXIT_CODE = 141  # what a shell reports of a program that SIGPIPE ended


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known words closest to `word`, as a phrase for an error's hint, or None."""
    matches = difflib.get_close_matches(word, sorted(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(matches)}?" if matches else None
