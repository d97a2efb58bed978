"""How a directory of a run is made again: by the run's own command, from one of its stages on."""

from __future__ import annotations

from pathlib import Path

from compressor.planning.cuts import CUT, INTERLEAVE

TEACHER_EXPORT = "teacher-"


def redo_in_run(stage: str, path: Path) -> str:
    """How a stage of a run is made again; a teacher's export belongs to the benchmark."""
    name = "bench" if path.name.startswith(TEACHER_EXPORT) else stage.partition("-")[0]
    if stage.startswith("reconstruct"):  # which comes after pruning, after sparsifying and after quantizing
        name = path.name
    if path.name.startswith(CUT):
        name = INTERLEAVE
    return f"the same command with --restart-from {name}"
