"""A stage to run."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.core.console import Console
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import StageContext
from tests.unit.runs.bed import Bed


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    source = ModelArtifact(
        path=tmp_path / "source", stage="source", fingerprint="f0", lineage=("source",), num_parameters=9
    )
    context = StageContext(console=Console(), seed=0, device="cpu", dtype="float32")
    return Bed(out_dir=tmp_path / "stages" / "widen", source=source, context=context)
