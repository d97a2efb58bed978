"""Time to first token: prefill of the whole batch and one sampling step."""

from __future__ import annotations

from bench.measure.timeline import Timeline


def ttft_s(timeline: Timeline) -> float:
    """Seconds from the start to the first token step."""
    return timeline.token_times_s[0] - timeline.start_s
