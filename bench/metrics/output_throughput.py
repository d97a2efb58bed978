"""Output throughput of the whole batch, the first tokens included."""

from __future__ import annotations

from bench.measure.timeline import Timeline
from bench.metrics.latency import latency_s


def output_tokens_per_s(timeline: Timeline) -> float:
    """Generated tokens of all sequences over the end-to-end latency, in tokens per second."""
    return sum(timeline.num_output_tokens) / latency_s(timeline)
