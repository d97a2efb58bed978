"""Students whose every weight follows from a formula, so that golden files hold on any version of torch."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from compressor.models.dims import dims_of_config
from compressor.models.shapes import expected_shapes

VOCAB_SIZE = 83  # odd, and no other dimension's size: two ranks pad it
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
ROPES: dict[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def golden_config(model_type: str, dtype: str, *, rope: str = "default") -> dict[str, Any]:
    """A Hugging Face config as transformers 4.57 writes it; the head is no quotient of hidden size."""
    config = {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500_000.0,
        "rope_scaling": ROPES[rope],
        "tie_word_embeddings": model_type == "qwen3",
        "torch_dtype": dtype,
    }
    if model_type == "mistral":
        config["sliding_window"] = None
    if model_type.startswith("qwen"):
        config["use_sliding_window"] = False
    return config


def golden_state(config: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every tensor of the student: multiples of 1/1024, and norms around one, chosen by name and place."""
    state = {}
    for name, shape in expected_shapes(dims_of_config(config)).items():
        count = torch.Size(shape).numel()
        place = torch.arange(count, dtype=torch.int64) + zlib.crc32(name.encode())
        values = ((place * 2_654_435_761) % (1 << 32) >> 22).float() / 1024 - 0.5
        centre = 1.0 if len(shape) == 1 and not name.endswith("bias") else 0.0
        state[name] = (values.reshape(shape) + centre).to(dtype)
    return state


def write_student(directory: Path, config: dict[str, Any]) -> Path:
    """Write the student as a checkpoint, without a tokenizer; returns `directory`."""
    directory.mkdir(parents=True)
    state = golden_state(config, getattr(torch, config["torch_dtype"]))
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory
