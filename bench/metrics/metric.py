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

    Attributes:
        name: Its key in results, unit as suffix.
        definition: One line for readers of the report.
        is_rate: More is better; otherwise it is a duration and less is better.
        compute: The function.
    """

    name: str
    definition: str
    is_rate: bool
    compute: Callable[[Sample], float | Absent]
