"""What a plan says of the preflight: whether there is one, on how large a slice of the model. No torch."""

from __future__ import annotations

from compressor.core.records import Record

# From so many hours of training on, a preflight of minutes costs little beside them.
LONG_RUN_HOURS = 1.0


class PlannedPreflight(Record):
    """Whether every stage and exporter is tried on a slice of the model before a run.

    Attributes:
        runs: Whether it is.
        num_layers: Layers of the slice, and of the student that is made from it; none where there is none.
        training_hours: What the run's trainings are estimated to take.
        machine: The machine of that estimate.
        reason: Why it runs or does not.
    """

    runs: bool
    num_layers: tuple[int, ...]
    training_hours: float
    machine: str
    reason: str
