"""What the results say of one arm, beside what it did in the cells."""

from __future__ import annotations

from bench.design.arms import Arm
from bench.machine.environment import model_files
from bench.metrics.model_bytes import engine_bytes, file_bytes, weight_bytes
from bench.report.results import Absent, ArmRecord, PeakMemory


def record_of(arm: Arm, peak_memory: PeakMemory | Absent) -> ArmRecord:
    """Facts of the arm, with a digest of every file."""
    files = model_files(arm)
    sizes = {name: file.size_bytes for name, file in files.items()}
    return ArmRecord(
        id=arm.id,
        model=arm.model,
        precision=arm.precision,
        runtime=arm.runtime,
        num_parameters=arm.num_parameters,
        files=files,
        peak_memory=peak_memory,
        has_random_weights=arm.has_random_weights,
        weight_bytes=weight_bytes(sizes),
        engine_bytes=engine_bytes(sizes),
        file_bytes=file_bytes(sizes),
    )
