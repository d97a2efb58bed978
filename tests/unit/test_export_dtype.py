"""A Hugging Face export copies tensors: in which precision is decided by them, whatever the config says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from compressor.api.measuring import refuse_other_dtype
from compressor.core.errors import UnsupportedError
from tests.tiny_models import make_model, save_checkpoint

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def stored(path: Path, dtype: str, said: str | None) -> Path:
    """A checkpoint of tensors of one dtype whose config names another, or none."""
    save_checkpoint(path, make_model().to(DTYPES[dtype]))
    with safe_open(path / "model.safetensors", framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {dtype}  # noqa: SIM118
    config = json.loads((path / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    (path / "config.json").write_text(json.dumps(config | ({} if said is None else {"torch_dtype": said})))
    return path


@pytest.mark.parametrize("said", ["bfloat16", "float16", "float32", None])
@pytest.mark.parametrize(("dtype", "precision"), [("BF16", "bf16"), ("F16", "fp16")])
def test_the_tensors_decide(dtype: str, precision: str, said: str | None, tmp_path: Path) -> None:
    source = stored(tmp_path / "m", dtype, said)
    refuse_other_dtype(source, precision)
    other = {"bf16": "fp16", "fp16": "bf16"}[precision]
    with pytest.raises(UnsupportedError, match=f"--precision {precision}"):
        refuse_other_dtype(source, other)


def test_float32_is_made_again_in_16_bits(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="--dtype bfloat16"):
        refuse_other_dtype(stored(tmp_path / "m", "F32", "bfloat16"), "bf16")
