"""Exports of a tiny student, each made once: building a graph takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from compressor.choices.formats import FORMATS
from compressor.core.console import Console
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config, num_parameters
from compressor.quantization.fp8 import QUANTIZE, QuantizeStageConfig
from compressor.recipe.recipe import Calibration, Export, Quantize
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import StageContext, execute
from exporters.export_stage import export_stage
from exporters.verification.logits import VerifyOptions
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
        source = (
            self.quantised(tied=tied) if FORMATS[name].needs_fp8 else artifact_of(self.student(tied=tied))
        )
        out_dir = self.root / f"{name}-{tied}{copy}"
        return execute(export_stage(name), Export(), source, out_dir, context()).artifact.path


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory, make_text: Callable[..., Path]) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"), make_text(num_words=200, name="calibration.txt"))
