"""The metrics of the concurrency experiment: one number each from a report of `trtllm-bench`."""

from __future__ import annotations

from operator import attrgetter

from bench.metrics.catalogue import Metric
from bench.runtimes.tensorrt_llm import ServingRun

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
    Metric(
        name=name, definition=definition, is_rate=name.endswith("_per_s") or "_per_s_" in name,
        compute=attrgetter(name),
    )
    for name, definition in _DEFINITIONS.items()
)  # fmt: skip
