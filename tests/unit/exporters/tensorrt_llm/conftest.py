"""Tiny students of every family with recorded maxima, and their checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.models.checkpoint import CheckpointReader, read_config
from compressor.models.families import FAMILIES
from compressor.quantization.amax import read_amax, write_amax
from compressor.quantization.coverage import attention_modules, quantised_linears
from exporters.tensorrt_llm.checkpoint import write_trtllm_checkpoint
from exporters.tensorrt_llm.config import Parallelism
from tests.tiny_models import MODEL_TYPES, make_model, save_checkpoint

EXPORTED = [name for name in MODEL_TYPES if FAMILIES[name].tensorrt_llm]
MESHES = [Parallelism(tp_size=tp, pp_size=pp) for tp in (1, 2, 4) for pp in (1, 2)]


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


def make_llama31() -> Any:
    """A model of Llama-3.1's rope."""
    rope = {"rope_parameters": {"rope_theta": 500_000.0, **LLAMA3}, "rope_scaling": {**LLAMA3}}
    return make_model(rope_theta=500_000.0, **rope).to(torch.bfloat16)


def record_amax(student: Path) -> None:
    """Maxima of the weights, and of inputs as calibration might have seen them: each module its own."""
    config, generator = read_config(student), torch.Generator().manual_seed(5)
    amax = {}
    with CheckpointReader(student) as reader:
        for name in quantised_linears(config):
            amax[f"{name}.weight_amax"] = reader.tensor(f"{name}.weight").abs().max().float()
            amax[f"{name}.input_amax"] = 3 + torch.rand((), generator=generator)
    for name in attention_modules(config):
        # One layer's cache needs a scale above the format's minimum, the others do not.
        amax[f"{name}.k_amax"] = torch.tensor(900.0 if ".0." in name else 6.0)
        amax[f"{name}.v_amax"] = torch.tensor(7.0)
    write_amax(student, amax)


@dataclass(frozen=True)
class Students:
    """Checkpoints by family, made once; not to be changed."""

    root: Path

    def make(self, model_type: str, *, tied: bool, dtype: torch.dtype, **overrides: Any) -> Path:
        path = self.root / "-".join((model_type, str(tied), str(dtype), *map(str, overrides.values())))
        if not path.is_dir():
            model = make_model(model_type, tie_word_embeddings=tied, **overrides).to(dtype)
            save_checkpoint(path, model)
            record_amax(path)
        return path


@pytest.fixture(scope="session")
def students(tmp_path_factory: pytest.TempPathFactory) -> Students:
    return Students(tmp_path_factory.mktemp("trtllm-students"))


def write(
    student: Path,
    out_dir: Path,
    *,
    precision: str,
    parallelism: Parallelism,
    fp8_kv_cache: bool = False,
    dtype: torch.dtype | None = None,
) -> Path:
    out_dir.mkdir(parents=True)
    write_trtllm_checkpoint(
        student,
        out_dir,
        dtype=dtype or (torch.float16 if precision == "fp16" else torch.bfloat16),
        parallelism=parallelism,
        amax=read_amax(student) if precision == "fp8" else None,
        fp8_kv_cache=fp8_kv_cache,
    )
    return out_dir
