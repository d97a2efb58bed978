"""The unified checkpoint under this environment's transformers, 4.57 in the container's set, 5 by default.

What transformers 5 saves is written out by hand here, so that both environments read the same bytes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from compressor.models.config.portable import make_portable
from compressor.quantization.e4m3 import E4M3
from compressor.quantization.reader import load_fp8_model
from tests.tiny_models import make_tokenizer
from tests.unit.exporters.conftest import Exports, config_of, set_fields
from tests.unit.exporters.tensorrt_llm.conftest import LLAMA3

ROPE = {"rope_theta": 500_000.0, **LLAMA3}


def save_as_transformers_5(directory: Path) -> None:
    """The keys that transformers 5 writes where 4.57 wrote others."""
    config = config_of(directory)
    for key in ("rope_theta", "rope_scaling", "torch_dtype"):
        config.pop(key, None)
    config |= {"rope_parameters": ROPE, "dtype": "bfloat16"}
    (directory / "config.json").write_text(json.dumps(config))
    names = {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "is_local": True}
    set_fields(directory / "tokenizer_config.json", **names)


def llama3_frequencies(head_dim: int) -> list[float]:
    """Inverse frequencies by hand: long waves divided by the factor, short ones kept, a ramp between."""
    found = []
    for index in range(0, head_dim, 2):
        frequency = ROPE["rope_theta"] ** (-index / head_dim)
        length = ROPE["original_max_position_embeddings"]
        turns = length * frequency / (2 * math.pi)
        low, high = ROPE["low_freq_factor"], ROPE["high_freq_factor"]
        kept = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(kept * frequency + (1 - kept) * frequency / ROPE["factor"])
    return found


@pytest.fixture
def unified(exports: Exports, tmp_path: Path) -> Path:
    made = exports.copy("huggingface-fp8", tmp_path / "unified", tied=False)
    save_as_transformers_5(made)
    make_portable(made)
    return made


def test_rope_and_dtype_are_read(unified: Path) -> None:
    config = AutoConfig.from_pretrained(unified, local_files_only=True)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    assert config.dtype == torch.bfloat16
    expected = torch.tensor(llama3_frequencies(16))
    for read in (model, load_fp8_model(unified, dtype="float32", device="cpu")):
        assert torch.allclose(read.model.rotary_emb.inv_freq, expected, rtol=1e-5)


def test_the_tokenizer_encodes_the_same(unified: Path) -> None:
    loaded, original = AutoTokenizer.from_pretrained(unified, local_files_only=True), make_tokenizer()
    for text in ("the old river <|end|> é 模\n\n  keeps", "", " a b"):
        assert loaded(text).input_ids == original(text).input_ids


def test_what_stays_16_bit_is_the_students(unified: Path, exports: Exports) -> None:
    stored = load_file(unified / "model.safetensors")
    student = load_file(exports.student(tied=False) / "model.safetensors")
    sixteen = {name for name, tensor in student.items() if stored[name].dtype != E4M3}
    assert len(sixteen) == 9
    assert all(torch.equal(stored[name], student[name]) for name in sixteen)
