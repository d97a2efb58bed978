"""Which metrics have a table, how it is headed and in which unit it is shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MetricTable:
    """How one metric's table is headed and its numbers shown.

    `{of}` in the title says what throughput is of; `scale` goes from SI to the unit shown.
    """

    metric: str
    title: str
    unit: str
    scale: float = 1.0


TABLES: tuple[MetricTable, ...] = (
    MetricTable(
        metric="output_tokens_per_s",
        title="Output throughput {of} (generated tokens per second)",
        unit="tok/s",
    ),
    MetricTable(
        metric="total_tokens_per_s",
        title="Total throughput {of} (prompt and generated tokens per second)",
        unit="tok/s",
    ),
    MetricTable(metric="latency_s", title="Latency, request to last token", unit="s"),
    MetricTable(metric="ttft_s", title="Time to first token (prefill)", unit="ms", scale=1000),
    MetricTable(
        metric="tpot_s", title="Time per output token after the first (decode step)", unit="ms", scale=1000
    ),
)
