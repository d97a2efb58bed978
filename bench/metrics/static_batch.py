"""The metrics of a static batch: one function and one definition each, computed from its timeline.

All sequences of a batch start and end together, and a token step is one clock reading for all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from bench.measure.timeline import Timeline
from bench.metrics.metric import Metric
from bench.report.results import Absent

MEDIAN, TAIL = 0.5, 0.99


def latency_s(timeline: Timeline) -> float:
    """End-to-end latency: seconds from the request to the last token step."""
    return timeline.token_times_s[-1] - timeline.start_s


def ttft_s(timeline: Timeline) -> float:
    """Time to first token: seconds from the request to the first token step (prefill and one sampling)."""
    return timeline.token_times_s[0] - timeline.start_s


def tpot_s(timeline: Timeline) -> float | Absent:
    """Time per output token without the first, `(latency - ttft) / (osl - 1)`, as trtllm-bench defines it."""
    num_steps = len(timeline.token_times_s)
    if num_steps == 1:
        return Absent(absent="one output token has no time per further token (osl = 1)")
    return (latency_s(timeline) - ttft_s(timeline)) / (num_steps - 1)


def itl_p50_s(timeline: Timeline) -> float | Absent:
    """Inter-token latency: the median gap in seconds; absent for a single output token."""
    return _gap(timeline, MEDIAN)


def itl_p99_s(timeline: Timeline) -> float | Absent:
    """The gap that one in a hundred exceeds; absent below a hundred gaps."""
    return _gap(timeline, TAIL)


def output_tokens_per_s(timeline: Timeline) -> float:
    """Generated tokens of all sequences, the first ones included, over the end-to-end latency."""
    return sum(timeline.num_output_tokens) / latency_s(timeline)


def total_tokens_per_s(timeline: Timeline) -> float:
    """Prompt and generated tokens of all sequences over the end-to-end latency."""
    return sum(timeline.num_input_tokens + timeline.num_output_tokens) / latency_s(timeline)


def output_tokens_per_s_per_user(timeline: Timeline) -> float:
    """Generated tokens of one sequence over the end-to-end latency; all sequences are alike."""
    return output_tokens_per_s(timeline) / len(timeline.num_output_tokens)


def output_tokens_per_s_per_gpu(timeline: Timeline) -> float | Absent:
    """Generated tokens of all sequences over latency and number of GPUs; absent without a GPU."""
    if not timeline.num_gpus:
        return Absent(absent="no GPU did this work")
    return output_tokens_per_s(timeline) / timeline.num_gpus


def requests_per_s(timeline: Timeline) -> float:
    """Sequences over the end-to-end latency."""
    return len(timeline.num_output_tokens) / latency_s(timeline)


def percentile(samples: Sequence[float], share: float) -> float | Absent:
    """The value below which `share` of the samples lie, interpolated linearly.

    The p99 needs a hundred samples, the p90 ten; the median any.
    """
    needed = 1 if share == MEDIAN else math.ceil(round(1 / (1 - share), 6))
    if len(samples) < needed:
        return Absent(absent=f"the {share:.0%} point needs {needed} samples, there are {len(samples)}")
    return float(np.quantile(np.asarray(samples, dtype=np.float64), share))


def _gap(timeline: Timeline, share: float) -> float | Absent:
    gaps = [after - before for before, after in itertools.pairwise(timeline.token_times_s)]
    if not gaps:
        return Absent(absent="one output token has no gap to a next one (osl = 1)")
    return percentile(gaps, share)


_DEFINITIONS: dict[Callable[[Timeline], float | Absent], str] = {
    output_tokens_per_s: "generated tokens of the whole batch, first tokens included, over latency",
    total_tokens_per_s: "prompt and generated tokens of the whole batch over latency",
    latency_s: "from the request (before its key/value cache is allocated) to the batch's last token",
    ttft_s: "from the request to the batch's first token",
    tpot_s: "(latency - ttft) / (osl - 1)",
    itl_p50_s: "median gap between successive tokens of a run",
    itl_p99_s: "99th percentile of those gaps, where a run has at least a hundred",
    output_tokens_per_s_per_user: "generated tokens of one sequence over latency",
    output_tokens_per_s_per_gpu: "generated tokens of the whole batch over latency and number of GPUs",
    requests_per_s: "sequences of the batch over latency",
}

METRICS: tuple[Metric[Timeline], ...] = tuple(
    Metric(name=compute.__name__, definition=definition, compute=compute)
    for compute, definition in _DEFINITIONS.items()
)
