"""Output throughput per GPU."""

from __future__ import annotations

from bench.measure.timeline import Timeline
from bench.metrics.absent import Absent
from bench.metrics.output_throughput import output_tokens_per_s


def output_tokens_per_s_per_gpu(timeline: Timeline) -> float | Absent:
    """Generated tokens of all sequences over latency and number of GPUs; absent without a GPU."""
    if not timeline.num_gpus:
        return Absent("no GPU did this work")
    return output_tokens_per_s(timeline) / timeline.num_gpus
