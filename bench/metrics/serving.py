"""The metrics of requests in flight: each is a number of what the server reports of a run."""

from __future__ import annotations

from operator import attrgetter

from bench.metrics.metric import Metric
from bench.runtimes.base import ServingRun

_DEFINITIONS = {
    "output_tokens_per_s": "generated tokens of all requests, first tokens included, over total latency",
    "total_tokens_per_s": "prompt and generated tokens of all requests over total latency",
    "latency_s": "mean of the requests' own latencies",
    "latency_p99_s": "99th percentile of those latencies, where there are at least a hundred requests",
    "ttft_s": "mean time from a request's start to its first token",
    "tpot_s": "mean of (latency - ttft) / (osl - 1)",
    "output_tokens_per_s_per_user": "mean over requests of osl over latency",
    "output_tokens_per_s_per_gpu": "output throughput over number of GPUs",
    "requests_per_s": "requests over total latency",
}

SERVING_METRICS: tuple[Metric[ServingRun], ...] = tuple(
    Metric(name=name, definition=definition, compute=attrgetter(name))
    for name, definition in _DEFINITIONS.items()
)
