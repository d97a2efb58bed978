"""A metric that cannot be computed is absent with a reason, never 0 or NaN."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Absent:
    """Stands where a number would be, and says why there is none."""

    reason: str
