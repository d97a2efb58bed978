"""A tiny checkpoint made sparse by each method, once; not to be changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from compressor.core.console import Console
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config, num_parameters
from compressor.recipe.recipe import Calibration, Sparsify
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import StageContext, execute
from compressor.sparsity.sparsify_stage import SPARSIFY, SparsifyStageConfig


def context(**changes: Any) -> StageContext:
    fields: dict[str, Any] = {"console": Console(), "seed": 0, "device": "cpu", "dtype": "float32"}
    return StageContext(**{**fields, **changes})


def artifact_of(path: Path) -> ModelArtifact:
    dims = dims_of_config(read_config(path))
    return ModelArtifact(
        path=path, stage="source", fingerprint="f", lineage=("source",), num_parameters=num_parameters(dims)
    )


@dataclass(frozen=True)
class Sparsified:
    """Makes and remembers sparse checkpoints of the tiny model."""

    root: Path
    dense: Path
    text: Path

    def make(self, *, dtype: str = "float32", **settings: Any) -> ModelArtifact:
        name = "-".join(f"{key}={value}" for key, value in {**settings, "dtype": dtype}.items())
        out_dir = self.root / name.replace("/", "_").replace("*", "_")
        return self.run(artifact_of(self.dense), out_dir, dtype=dtype, **settings)

    def run(
        self, source: ModelArtifact, out_dir: Path, *, dtype: str = "float32", **settings: Any
    ) -> ModelArtifact:
        """Sparsify any checkpoint into a directory of the caller's."""
        sparsify = Sparsify(**{"pattern": "2:4", **settings})
        config = SparsifyStageConfig(sparsify=sparsify, calibration=self.calibration)
        return execute(SPARSIFY, config, source, out_dir, context(dtype=dtype)).artifact

    def copy(self, directory: Path) -> Path:
        """A sparse checkpoint that may be changed."""
        return Path(shutil.copytree(self.make(method="wanda").path, directory / "made"))

    @property
    def calibration(self) -> Calibration:
        return Calibration(data=str(self.text), size=6, seq_len=48)


@pytest.fixture(scope="session")
def sparsified(
    tiny_checkpoint: Path, make_text: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Sparsified:
    text = make_text(num_words=600, name="calibration.txt")
    return Sparsified(tmp_path_factory.mktemp("sparse"), tiny_checkpoint, text)
