"""End-to-end latency: from the request to the last token of the batch."""

from __future__ import annotations

from bench.measure.timeline import Timeline


def latency_s(timeline: Timeline) -> float:
    """Seconds from the start to the last token step; the batch starts and ends together."""
    return timeline.token_times_s[-1] - timeline.start_s
