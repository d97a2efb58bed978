"""What a run records of its preflight: every stage and exporter, tried on a slice of the model first."""

from __future__ import annotations

from compressor.core.records import Record


class PreflightRecord(Record):
    """One preflight, passed or not.

    Attributes:
        fingerprint: Of the recipe, the teacher and the versions that it was made with.
        num_layers: Layers of the slice.
        seconds: What all of it took, the slice included.
        stages: Seconds of every stage that finished, by its directory in a run; of a family, below the
            member's name.
        left_out: What the slice could not try, one sentence each.
        error: What it failed with, None where it passed.
        ended: When, in UTC.
    """

    fingerprint: str
    num_layers: int
    seconds: float
    stages: dict[str, float]
    left_out: tuple[str, ...] = ()
    error: str | None = None
    ended: str

    @property
    def passed(self) -> bool:
        """Whether every stage and exporter came to its end."""
        return self.error is None
