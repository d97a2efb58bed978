"""Inter-token latency: the gaps between successive token steps of one batch."""

from __future__ import annotations

import itertools

from bench.measure.timeline import Timeline
from bench.metrics.absent import Absent
from bench.metrics.percentile import percentile

MEDIAN, TAIL = 0.5, 0.99


def itl_p50_s(timeline: Timeline) -> float | Absent:
    """The median gap in seconds; absent for a single output token."""
    return _gap(timeline, MEDIAN)


def itl_p99_s(timeline: Timeline) -> float | Absent:
    """The gap that one in a hundred exceeds; absent below a hundred gaps."""
    return _gap(timeline, TAIL)


def _gap(timeline: Timeline, share: float) -> float | Absent:
    gaps = [after - before for before, after in itertools.pairwise(timeline.token_times_s)]
    if not gaps:
        return Absent("one output token has no gap to a next one (osl = 1)")
    return percentile(gaps, share)
