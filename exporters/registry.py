"""From the table of formats to their exporters, and to the format of a directory."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from compressor.choices.formats import FORMATS, STUDENT_FORMAT, Format
from compressor.core.errors import DependencyError
from compressor.models.sparse.record import SparsityRecord
from compressor.recipe.recipe import Export
from compressor.runs.manifest import STUDENT
from exporters.protocol import Exporter
from exporters.tensorrt_llm.versions import require_builder, require_engine_format


def exporter_of(name: str) -> Exporter:
    """The exporter of a format in the table."""
    exporter: Exporter = FORMATS[name].load()
    return exporter


def format_at(directory: Path) -> Format | None:
    """The format of the model in a directory, told by its files; None where there is none."""
    return next((row for row in FORMATS.values() if (directory / row.marker).is_file()), None)


def place_of(name: str) -> str:
    """Where a run keeps an export, relative to its directory."""
    return STUDENT if name == STUDENT_FORMAT else f"exports/{name}"


def check_exports(
    formats: Sequence[str],
    config: dict[str, object],
    export: Export,
    *,
    sparsity: SparsityRecord | None = None,
) -> None:
    """Refuse (UnsupportedError), from its config alone, a model that one of these formats cannot express."""
    for name in formats:
        exporter_of(name).check(config, export, sparsity)


def check_files(formats: Sequence[str], directory: Path) -> None:
    """Refuse (UnsupportedError) a checkpoint that lacks a file which one of these formats needs."""
    for name in formats:
        exporter_of(name).check_files(directory)


def require_tools(formats: Sequence[str], export: Export = Export()) -> None:
    """Refuse formats that nothing on this machine can write, and a required engine that none of them becomes.

    Raises:
        UsageError: when an engine is required and no format becomes one.
        DependencyError: naming the format and the library, or the builder or converter, that is missing.
    """
    if export.tensorrt_llm.require_engine:
        require_engine_format(formats)
        require_builder()
    for name in formats:
        for distribution in FORMATS[name].requires:
            if importlib.util.find_spec(distribution.replace("-", "_")) is None:
                raise DependencyError(
                    f"format {name} needs a library that is not installed",
                    where="export",
                    expected=distribution,
                    hint=f"pip install {distribution}, or leave {name} out of the formats",
                )
        exporter_of(name).require(export)
