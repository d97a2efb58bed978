"""Bytes as text for people."""

from __future__ import annotations

# Of each unit its bytes, the digits behind the point, and the least that is shown in it: never fewer than two
# digits that say something.
_UNITS = (("GiB", 1 << 30, 2, 0.1), ("MiB", 1 << 20, 1, 1), ("KiB", 1 << 10, 1, 1))


def shown_size(num_bytes: float) -> str:
    """`1.25 GiB`, from a tenth of one on, or a smaller unit from one on: `12.5 MiB`, `3.0 KiB`, `90 B`."""
    for unit, size, digits, least in _UNITS:
        if num_bytes >= least * size:
            return f"{num_bytes / size:.{digits}f} {unit}"
    return f"{num_bytes:.0f} B"
