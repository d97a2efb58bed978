"""What the results say of one arm, beside what it did in the cells: its files, and what they take on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from bench.design.arms import Arm
from bench.report.results import Absent, ArmRecord, FileRecord, PeakMemory
from compressor.runs.artifact import sha256_of_file

# ONNX graphs keep large tensors in a file of their own beside the graph.
_WEIGHTS, _ENGINES = (".safetensors", ".onnx", ".data"), (".engine",)


def record_of(arm: Arm, peak_memory: PeakMemory | Absent) -> ArmRecord:
    """Facts of the arm, with digest and size of every file by its name in the arm's directory."""
    files = {
        path.relative_to(arm.weights).as_posix(): FileRecord(
            sha256=sha256_of_file(path), size_bytes=path.stat().st_size
        )
        for path in sorted(arm.weights.rglob("*"))
        if path.is_file()
    }
    return ArmRecord(
        id=arm.id,
        model=arm.model,
        precision=arm.precision,
        runtime=arm.runtime,
        num_parameters=arm.num_parameters,
        files=files,
        peak_memory=peak_memory,
        has_random_weights=arm.has_random_weights,
        weight_bytes=_bytes(files, _WEIGHTS, "no weights are stored apart"),
        engine_bytes=_bytes(files, _ENGINES, "no engine"),
        file_bytes=sum(file.size_bytes for file in files.values()),
    )


def _bytes(files: Mapping[str, FileRecord], suffixes: tuple[str, ...], why_not: str) -> int | Absent:
    found = [file.size_bytes for name, file in files.items() if PurePosixPath(name).suffix in suffixes]
    return sum(found) if found else Absent(absent=why_not)
