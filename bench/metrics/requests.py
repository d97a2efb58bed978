"""Request throughput of the whole batch."""

from __future__ import annotations

from bench.measure.timeline import Timeline
from bench.metrics.latency import latency_s


def requests_per_s(timeline: Timeline) -> float:
    """Sequences over the end-to-end latency."""
    return len(timeline.num_output_tokens) / latency_s(timeline)
