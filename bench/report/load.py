"""What the third number of a cell is called: a batch size, or requests in flight."""

from __future__ import annotations

from dataclasses import dataclass

from bench.report.results import Results


@dataclass(frozen=True, kw_only=True)
class Load:
    """Words for one of the two experiments, which never share a table.

    Attributes:
        word: In headings and columns.
        axis: Under a chart.
        of: What throughput is of.
    """

    word: str
    axis: str
    of: str

    @property
    def throughput(self) -> str:
        """The axis of output throughput."""
        return f"output tok/s {self.of}"


BATCH = Load(word="batch", axis="batch size", of="of the whole batch")
IN_FLIGHT = Load(word="in flight", axis="requests in flight", of="of all requests")


def load_of(results: Results) -> Load:
    """The words of a benchmark's experiment."""
    return IN_FLIGHT if results.protocol.mode == "concurrency" else BATCH
