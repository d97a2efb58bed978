"""Which metrics have a table, how tables are headed, and in which words and units they speak."""

from __future__ import annotations

from dataclasses import dataclass

from bench.report.numbers import NO_NUMBER
from bench.report.results import Absent, CellResult, Results


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


def verdict_on(cell: CellResult, metric: str, *, max_relative_width: float) -> str:
    """The cell's status, but `NOISY` for a metric whose own interval is too wide."""
    ratio = cell.ratios.get(metric)
    if cell.status != "ok" or ratio is None:
        return cell.status
    if isinstance(ratio, Absent):
        return NO_NUMBER
    return "NOISY" if ratio.relative_width > max_relative_width else "ok"


def pairs_of(cell: CellResult) -> str:
    """`4 x 5` for four series of five pairs, `40` for a single series."""
    if cell.speedup is None:
        return NO_NUMBER
    num_pairs = cell.speedup.num_pairs
    return f"{cell.num_series} x {num_pairs // cell.num_series}" if cell.num_series > 1 else str(num_pairs)


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Words for one of the two experiments, which never share a table.

    `size` stands in headings and columns, `axis` under a chart; `of` says what throughput is of.
    """

    size: str
    axis: str
    of: str

    @property
    def throughput(self) -> str:
        """The axis of output throughput."""
        return f"output tok/s {self.of}"


STATIC_BATCH = Wording(size="batch", axis="batch size", of="of the whole batch")
IN_FLIGHT = Wording(size="in flight", axis="requests in flight", of="of all requests")


def wording_of(results: Results) -> Wording:
    """The words of a benchmark's experiment."""
    return IN_FLIGHT if results.protocol.mode == "concurrency" else STATIC_BATCH
