"""A writer that wrote wrong files and recorded them faithfully: their sums say nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compressor.runs.artifact import read_artifact, record_files


def record_again(directory: Path) -> None:
    """Make the record of a finished stage agree with whatever its files are now."""
    replace(read_artifact(directory), files=record_files(directory)).write()
