"""The one list of metrics: name, meaning, direction and function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from bench.measure.timeline import Timeline
from bench.metrics.absent import Absent
from bench.metrics.itl import itl_p50_s, itl_p99_s
from bench.metrics.latency import latency_s
from bench.metrics.output_throughput import output_tokens_per_s
from bench.metrics.per_gpu import output_tokens_per_s_per_gpu
from bench.metrics.per_user import output_tokens_per_s_per_user
from bench.metrics.requests import requests_per_s
from bench.metrics.total_throughput import total_tokens_per_s
from bench.metrics.tpot import tpot_s
from bench.metrics.ttft import ttft_s

Sample = TypeVar("Sample")


@dataclass(frozen=True, kw_only=True)
class Metric(Generic[Sample]):
    """A number computed from one sample: a timeline of a static batch, or a server's report.

    Attributes:
        name: Its key in results, unit as suffix.
        definition: One line for readers of the report.
        is_rate: More is better; otherwise it is a duration and less is better.
        compute: The function.
    """

    name: str
    definition: str
    is_rate: bool
    compute: Callable[[Sample], float | Absent]


METRICS: tuple[Metric[Timeline], ...] = (
    Metric(
        name="output_tokens_per_s",
        definition="generated tokens of the whole batch, first tokens included, over latency",
        is_rate=True,
        compute=output_tokens_per_s,
    ),
    Metric(
        name="total_tokens_per_s",
        definition="prompt and generated tokens of the whole batch over latency",
        is_rate=True,
        compute=total_tokens_per_s,
    ),
    Metric(
        name="latency_s",
        definition="from the request (before its key/value cache is allocated) to the batch's last token",
        is_rate=False,
        compute=latency_s,
    ),
    Metric(
        name="ttft_s",
        definition="from the request to the batch's first token",
        is_rate=False,
        compute=ttft_s,
    ),
    Metric(
        name="tpot_s",
        definition="(latency - ttft) / (osl - 1)",
        is_rate=False,
        compute=tpot_s,
    ),
    Metric(
        name="itl_p50_s",
        definition="median gap between successive tokens of a run",
        is_rate=False,
        compute=itl_p50_s,
    ),
    Metric(
        name="itl_p99_s",
        definition="99th percentile of those gaps, where a run has at least a hundred",
        is_rate=False,
        compute=itl_p99_s,
    ),
    Metric(
        name="output_tokens_per_s_per_user",
        definition="generated tokens of one sequence over latency",
        is_rate=True,
        compute=output_tokens_per_s_per_user,
    ),
    Metric(
        name="output_tokens_per_s_per_gpu",
        definition="generated tokens of the whole batch over latency and number of GPUs",
        is_rate=True,
        compute=output_tokens_per_s_per_gpu,
    ),
    Metric(
        name="requests_per_s",
        definition="sequences of the batch over latency",
        is_rate=True,
        compute=requests_per_s,
    ),
)
