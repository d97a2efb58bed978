"""Exports of models that are only a shape: what a runtime reads that does not draw weights itself."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from compressor.core.console import Console
from compressor.runs.artifact import ModelArtifact, fingerprint_of
from compressor.runs.inputs import version_of


def random_export(
    shape: ModelArtifact, form: str, directory: Path, *, console: Console, keep: bool = True
) -> ModelArtifact:
    """The export of a shape's random weights below `directory`, written once for a version of its libraries.

    It holds the shape's mark. With `keep` false it is written anew, into `directory` itself, which is there.

    Raises:
        UnsupportedError: for a model that the format cannot express.
    """
    from bench.design.shape_only import is_shape_only
    from exporters.registry import exporter_of

    versions = {name: version_of(name) for name in exporter_of(form).libraries}
    fingerprint = fingerprint_of({"shape": shape.fingerprint, "format": form, "versions": versions})
    place = directory / f"{shape.path.name}-{form}-{fingerprint[:16]}" if keep else directory
    artifact = replace(shape, path=place, fingerprint=fingerprint, lineage=(*shape.lineage, f"export-{form}"))
    if not keep:
        _export(shape.path, form, place, console)
    elif not is_shape_only(place):
        directory.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=directory))
        try:
            _export(shape.path, form, work, console)
            shutil.rmtree(place, ignore_errors=True)
            work.rename(place)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return artifact


def _export(shape: Path, form: str, directory: Path, console: Console) -> None:
    """Write weights, export them, and leave the export alone with the shape's mark."""
    from bench.design.shape_only import MARK_FILE, write_random_checkpoint
    from exporters.registry import exporter_of
    from exporters.verification.logits import VerifyOptions

    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        write_random_checkpoint(shape, Path(scratch))
        exporter_of(form).write(Path(scratch), directory, VerifyOptions(console=console))
    shutil.copyfile(shape / MARK_FILE, directory / MARK_FILE)
