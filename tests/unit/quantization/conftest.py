from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.core.console import Console
from compressor.quantization.fp8 import QUANTIZE, QuantizeStageConfig
from compressor.recipe.recipe import Calibration, Quantize
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import StageContext, StageOutcome, execute
from tests.tiny_models import make_model, save_checkpoint

Quantiser = Callable[..., StageOutcome]


def student_artifact(path: Path, **model: Any) -> ModelArtifact:
    save_checkpoint(path, make_model(**model).to(torch.bfloat16))
    return ModelArtifact(
        path=path, stage="distill", fingerprint="f", lineage=("source", "distill"), num_parameters=1
    )


@pytest.fixture
def quantise(make_text: Callable[..., Path]) -> Quantiser:
    text = make_text(num_words=160)

    def run(
        source: ModelArtifact, out_dir: Path, *, dtype: str = "bfloat16", size: int = 6, **settings: Any
    ) -> Any:
        config = QuantizeStageConfig(
            quantize=Quantize(fp8=True, **settings),
            calibration=Calibration(data=str(text), size=size, seq_len=48),
        )
        context = StageContext(console=Console(), seed=0, device="cpu", dtype=dtype)
        return execute(QUANTIZE, config, source, out_dir, context)

    return run
