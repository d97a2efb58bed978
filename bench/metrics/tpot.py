"""Time per output token: the decode step, without the first token (as trtllm-bench defines it)."""

from __future__ import annotations

from bench.measure.timeline import Timeline
from bench.metrics.absent import Absent
from bench.metrics.latency import latency_s
from bench.metrics.ttft import ttft_s


def tpot_s(timeline: Timeline) -> float | Absent:
    """`(latency - ttft) / (osl - 1)` in seconds; absent for a single output token."""
    num_steps = len(timeline.token_times_s)
    if num_steps == 1:
        return Absent("one output token has no time per further token (osl = 1)")
    return (latency_s(timeline) - ttft_s(timeline)) / (num_steps - 1)
