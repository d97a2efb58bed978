"""Output throughput as one user sees it."""

from __future__ import annotations

from bench.measure.timeline import Timeline
from bench.metrics.output_throughput import output_tokens_per_s


def output_tokens_per_s_per_user(timeline: Timeline) -> float:
    """Generated tokens of one sequence over the end-to-end latency; all sequences are alike."""
    return output_tokens_per_s(timeline) / len(timeline.num_output_tokens)
