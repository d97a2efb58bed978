"""What a plan says of a run's benchmark: its arms, their engines, disk, memory and hours. Records only."""

from __future__ import annotations

from compressor.core.records import Record


class PlannedArm(Record):
    """One model in one precision, as the benchmark will measure it.

    Attributes:
        engine: The directory of the TensorRT engine that is built for it, relative to the run's.
    """

    name: str
    model: str
    precision: str
    engine: str | None = None


class PlannedBench(Record):
    """A benchmark that is to be made.

    Attributes:
        comparisons: Names of arms, baseline first.
        num_cells: Cells of all comparisons together; each model's largest batch, where asked for, is none of
            them before it is measured.
        num_runs: Timed runs in these cells if none is noisy: of a serving benchmark each is a process of its
            own.
        disk_bytes: What the benchmark adds: the teacher's exports, and every engine.
        memory_bytes_per_device: Weights and key/value cache of the largest arm in the largest cell; None
            where each model's largest batch is measured.
        fits: Whether a GPU of `hardware` has so much; None on a CPU.
        hours: On `hardware`; None where its rates are not known before they are measured.
        assumptions: What the hours stand on.
    """

    arms: tuple[PlannedArm, ...]
    comparisons: tuple[tuple[str, str], ...]
    num_cells: int
    num_runs: int
    disk_bytes: int
    memory_bytes_per_device: int | None
    fits: bool | None = None
    hardware: str
    hours: float | None = None
    assumptions: str | None = None
