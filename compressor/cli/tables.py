"""Small tables and numbers with units, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

_GIB = 1 << 30


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns aligned by width, numbers as they come."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f"{size / _GIB:.2f} GiB"


def duration(hours: float) -> str:
    """Hours in the unit that suits."""
    if hours < 1 / 60:
        return f"{math.ceil(hours * 3600)} s"
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:,.1f} h"
