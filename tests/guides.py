"""The commands of README.md and the guides in docs/: which are run by a test, and why the others are not.

A command stands in an indented block, on one line or on several joined by backslashes. A block that no test
runs has `<!-- not run: REASON -->` above it. Fenced `console` blocks run in test_documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
GUIDES = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]
_MARK = re.compile(r"^ *<!-- not run: (.{10,}) -->$")
_COMMAND = re.compile(r"^ {4,}(?:\w+=\S+ )*(compress-export|torchrun|docker|make|sbatch)\b.*$")


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of a guide.

    Attributes:
        line: The whole of it, continuation lines joined.
        not_run: Why no test runs it; None where one does.
    """

    guide: str
    line: str
    not_run: str | None

    @property
    def words(self) -> list[str]:
        """What follows `compress-export`; nothing of another program."""
        first, *rest = self.line.split()
        return rest if first == "compress-export" else []


def commands_of(guide: Path) -> list[Command]:
    """The commands of one page, in their order."""
    return [
        Command(guide=guide.name, line=line, not_run=reason)
        for reason, block in _blocks(guide.read_text(encoding="utf-8"))
        for line in block
    ]


def _blocks(text: str) -> Iterator[tuple[str | None, list[str]]]:
    """Every indented block that holds commands, with the reason above it."""
    reason: str | None = None
    block: list[str] = []
    is_fenced = False
    for line in [*text.replace("\\\n", " ").splitlines(), ""]:
        is_fenced ^= line.lstrip().startswith("```")
        if not is_fenced and _COMMAND.match(line):
            block.append(" ".join(line.partition("#")[0].split()))
            continue
        if block:
            yield reason, block
            reason, block = None, []
        if mark := _MARK.match(line):
            reason = mark[1]
        elif line.strip():
            reason = None
