"""Total throughput of the whole batch: tokens read and tokens written."""

from __future__ import annotations

from bench.measure.timeline import Timeline
from bench.metrics.latency import latency_s


def total_tokens_per_s(timeline: Timeline) -> float:
    """Prompt and generated tokens of all sequences over the end-to-end latency, in tokens per second."""
    num_tokens = sum(timeline.num_input_tokens) + sum(timeline.num_output_tokens)
    return num_tokens / latency_s(timeline)
