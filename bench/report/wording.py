"""How reports call the size of a cell: a batch size, or a number of requests in flight."""

from __future__ import annotations

from dataclasses import dataclass

from bench.report.results import Results


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Words for one of the two experiments, which never share a table.

    Attributes:
        size: In headings and columns.
        axis: Under a chart.
        of: What throughput is of.
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
