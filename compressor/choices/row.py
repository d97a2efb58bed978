"""What the rows of every table of choices have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from compressor.core.lazy import resolve


@dataclass(frozen=True, kw_only=True)
class Row:
    """An entry of a table.

    Attributes:
        name: What recipes, the command line and records call it.
        help: One line for those who choose.
        code: Where its code is, as "module:attribute"; imported when it is used.
    """

    name: str
    help: str
    code: str

    def load(self) -> Any:
        """Its code, imported now."""
        return resolve(self.code)


AnyRow = TypeVar("AnyRow", bound=Row)


def table(*rows: AnyRow) -> dict[str, AnyRow]:
    """Rows by name; tests may add to it."""
    return {row.name: row for row in rows}
