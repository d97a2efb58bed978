"""Exports of a tiny student, each made once: building a graph takes seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.choices.formats import FORMATS
from compressor.core.console import Console
from compressor.core.errors import VerificationError
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config, num_parameters
from compressor.quantization.fp8 import QUANTIZE, QuantizeStageConfig
from compressor.recipe.recipe import Calibration, Export, Quantize
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import StageContext, execute
from exporters.export_stage import export_stage
from exporters.registry import exporter_of
from exporters.verification.logits import VerifyOptions
from exporters.verification.record import VERIFICATION_FILE, Verification
from tests.corruptions.formats import change_json
from tests.tiny_models import make_model, save_checkpoint

OPTIONS = VerifyOptions(console=Console())


def context() -> StageContext:
    return StageContext(console=Console(), seed=0, device="cpu", dtype="bfloat16")


def artifact_of(path: Path) -> ModelArtifact:
    return ModelArtifact(
        path=path,
        stage="distill",
        fingerprint="f",
        lineage=("source", "distill"),
        num_parameters=num_parameters(dims_of_config(read_config(path))),
    )


@dataclass(frozen=True)
class Exports:
    """Students and their exports, by format; not to be changed."""

    root: Path
    text: Path

    def student(self, *, tied: bool) -> Path:
        path = self.root / f"student-{tied}"
        if not path.is_dir():
            save_checkpoint(path, make_model(tie_word_embeddings=tied).to(torch.bfloat16))
        return path

    def quantised(self, *, tied: bool, fp8_kv_cache: bool = False) -> ModelArtifact:
        config = QuantizeStageConfig(
            quantize=Quantize(fp8=True, fp8_kv_cache=fp8_kv_cache),
            calibration=Calibration(data=str(self.text), size=4, seq_len=64),
        )
        source = artifact_of(self.student(tied=tied))
        out_dir = self.root / f"quantize-{tied}{'-kv' if fp8_kv_cache else ''}"
        return execute(QUANTIZE, config, source, out_dir, context()).artifact

    def make(self, name: str, *, tied: bool = True, copy: str = "") -> Path:
        return export(name, self.source(name, tied=tied), self.root / f"{name}-{tied}{copy}").path

    def source(self, name: str, *, tied: bool = True) -> ModelArtifact:
        if FORMATS[name].needs_fp8:
            return self.quantised(tied=tied)
        return artifact_of(self.student(tied=tied))

    def copy(self, name: str, to: Path, *, tied: bool = True) -> Path:
        """An export that a test may change."""
        return Path(shutil.copytree(self.make(name, tied=tied), to))


def export(name: str, source: ModelArtifact, out_dir: Path, **settings: Any) -> ModelArtifact:
    """What the stage makes, checked."""
    return execute(export_stage(name), Export(**settings), source, out_dir, context()).artifact


def verify(name: str, made: Path, student: Path) -> Verification:
    return exporter_of(name).verify(made, student, OPTIONS)


def refuses(name: str, made: Path, student: Path, *, match: str) -> None:
    with pytest.raises(VerificationError, match=match):
        verify(name, made, student)


def record_of(made: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((made / VERIFICATION_FILE).read_text())
    return record


def config_of(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return config


def set_fields(file: Path, **fields: Any) -> None:
    change_json(file, lambda document: document.update(fields))


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory, make_text: Callable[..., Path]) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"), make_text(num_words=200, name="calibration.txt"))
