"""Graphs of tiny models, and what plain transformers computes for the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from exporters.onnx.builder import GRAPH_FILE
from exporters.onnx_standard.decoder import build_decoder
from exporters.onnx_standard.execute import StandardGraph
from exporters.onnx_standard.tensors import DTYPES, opened_tensors, rope_of

FLOAT32 = "fp32"  # no precision of the format: for comparing to float32's rounding
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("llama", {}),
    "llama, untied, odd shape": ("llama", {"tie_word_embeddings": False, "num_attention_heads": 2}),
    "mistral, window": ("mistral", {"sliding_window": 16}),
    "mistral": ("mistral", {"sliding_window": None}),
    "nemotron": ("nemotron", {}),
    "phi3, window": ("phi3", {"sliding_window": 24}),
    "phi3, part of the head turned": ("phi3", {"partial_rotary_factor": 0.5}),
    "qwen2, biases": ("qwen2", {}),
    "qwen2, windows by layer": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    "qwen3, head norms": ("qwen3", {"head_dim": 24}),
}


def write_float32_graph(student: Path, out_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(DTYPES, FLOAT32, torch.float32)
    out_dir.mkdir()
    config = read_config(student)
    with opened_tensors(student, FLOAT32) as tensors:
        model = build_decoder(config, dims_of_config(config), tensors, rope_of(student), dtype=torch.float32)
        ir.save(model, out_dir / GRAPH_FILE, external_data=f"{GRAPH_FILE}.data")
    return out_dir


def open_graph(made: Path, student: Path, **options: Any) -> StandardGraph:
    return StandardGraph(made, dims_of_config(read_config(student)), **options)


def random_ids(length: int, *, seed: int = 0, vocab_size: int = 331) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(0, vocab_size, (length,), generator=generator).tolist()
    return ids


def plain_logits(model: Any, token_ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([token_ids]), use_cache=False).logits[0]
    return logits


def assert_close(found: torch.Tensor, expected: torch.Tensor, *, within: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= within * expected.abs().max()
