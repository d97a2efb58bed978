"""What a metric is. One that cannot be computed is absent with a reason, never 0 or NaN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from bench.report.results import Absent

Sample = TypeVar("Sample")


@dataclass(frozen=True, kw_only=True)
class Metric(Generic[Sample]):
    """A number computed from one sample: a timeline of a static batch, or a server's report.

    `name` is its key in results, unit as suffix; `definition` one line for readers of the report.
    """

    name: str
    definition: str
    compute: Callable[[Sample], float | Absent]

    @property
    def is_rate(self) -> bool:
        """More is better; otherwise it is a duration and less is better."""
        return "_per_s" in self.name
