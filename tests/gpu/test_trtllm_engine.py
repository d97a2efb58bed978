"""A real engine of a tiny checkpoint, dense and with sparse tactics allowed; needs TensorRT-LLM and a GPU.

In the release container: `make test-container-set` installs nothing there, so run
`python -m pytest tests/gpu -m trtllm` with the package installed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compressor.core.console import Console
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from compressor.recipe.recipe import TensorRTLLM
from exporters.tensorrt_llm.checkpoint import write_trtllm_checkpoint
from exporters.tensorrt_llm.config import Parallelism
from exporters.tensorrt_llm.engine import make_engine
from tests.tiny_models import make_model, save_checkpoint


@pytest.mark.trtllm
@pytest.mark.parametrize("sparsity", [False, True])
def test_a_real_engine_is_built(tmp_path: Path, sparsity: bool) -> None:
    model = make_model(hidden_size=256, head_dim=64, intermediate_size=512)
    if sparsity:
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data.view(-1, 4)[:, :2] = 0
    student = save_checkpoint(tmp_path / "student", model.to(torch.float16))
    (tmp_path / "export" / "checkpoint").mkdir(parents=True)
    write_trtllm_checkpoint(
        student, tmp_path / "export" / "checkpoint", dtype=torch.float16, parallelism=Parallelism()
    )
    settings = TensorRTLLM(require_engine=True, max_batch_size=2, max_seq_len=256, max_num_tokens=512)
    dims = dims_of_config(read_config(student))
    record = make_engine(tmp_path / "export", dims, settings, Console(), sparsity=sparsity)
    assert record.built
    if sparsity:
        assert record.sparsity is not None
        assert record.sparsity.num_eligible
