"""A slice of a model against the model with its layers deleted by hand, in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from compressor.models.source import open_checkpoint, resolve_source
from compressor.pruning.layer_slice import kept_by_kind, slice_layers
from tests.tiny_models import VOCAB_SIZE, make_model, save_checkpoint

WINDOWED = {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3}


@pytest.mark.parametrize(
    ("model_type", "fields", "kept"),
    [
        ("llama", {"num_hidden_layers": 4}, (0, 1)),
        ("nemotron", {"num_hidden_layers": 3, "tie_word_embeddings": False}, (0, 1)),
        ("phi3", {"num_hidden_layers": 3, "tie_word_embeddings": False}, (0, 1)),
        # Layers 0 to 2 see all of the text, layer 3 has a window: one of each kind stays.
        ("qwen2", WINDOWED, (0, 3)),
    ],
)
def test_it_computes_what_these_layers_do(
    tmp_path: Path, model_type: str, fields: dict[str, Any], kept: tuple[int, ...]
) -> None:
    model = make_model(model_type, **fields)
    source, out_dir = save_checkpoint(tmp_path / "model", model), tmp_path / "slice"
    out_dir.mkdir()
    slice_layers(source, dims_of_config(read_config(source)).with_shape(num_hidden_layers=2), out_dir)

    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList([layers[index] for index in kept])
    for position, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = position
    model.config.num_hidden_layers = 2
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in kept]
    ids = torch.arange(24)[None] % VOCAB_SIZE
    sliced = AutoModelForCausalLM.from_pretrained(out_dir, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(sliced(ids).logits, model(ids).logits)
    opened = open_checkpoint(
        resolve_source(str(out_dir)), tmp_path, dtype="float32"
    )  # refuses what is unsound
    assert opened.num_parameters == sum(parameter.numel() for parameter in sliced.parameters())


def test_it_can_be_narrower_than_its_source(tmp_path: Path) -> None:
    """As the teacher of a family's later member, which is not made yet."""
    source, out_dir = save_checkpoint(tmp_path / "model", make_model()), tmp_path / "slice"
    out_dir.mkdir()
    shape = dims_of_config(read_config(source)).with_shape(
        num_hidden_layers=2, hidden_size=48, intermediate_size=96, num_attention_heads=2
    )
    slice_layers(source, shape, out_dir)
    assert dims_of_config(read_config(out_dir)) == shape
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(out_dir)(torch.arange(8)[None]).logits
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("kinds", "count", "kept"),
    [
        (("a", "a", "a"), 2, (0, 1)),
        (("a", "a", "b", "a"), 2, (0, 2)),
        (("b", "a", "a", "c"), 2, (0, 1)),
        (("a", "a", "a", "b"), 3, (0, 1, 3)),
    ],
)
def test_a_layer_of_every_kind_stays(kinds: tuple[str, ...], count: int, kept: tuple[int, ...]) -> None:
    assert kept_by_kind(kinds, count) == kept
