"""Shapes for random weights, as they are written on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.design.shape_only import shape_of, write_random_checkpoint, write_shape
from compressor.core.errors import UsageError
from compressor.models.dims import num_linear_parameters, num_parameters
from compressor.models.presets import PRESETS

LLAMA = PRESETS["llama3.1-8b"].dims


def test_a_layer_is_one_layer_with_hardly_anything_around_it() -> None:
    layer = shape_of("llama3.1-8b:layer")
    assert num_linear_parameters(layer) * 32 == num_linear_parameters(LLAMA)
    assert (num_parameters(layer) - num_linear_parameters(layer)) / num_parameters(layer) < 0.02


def test_parts_of_a_shape_are_joined() -> None:
    layer = shape_of("llama3.1-8b:4b-width+layer")
    assert (layer.hidden_size, layer.intermediate_size, layer.num_hidden_layers) == (3072, 9216, 1)
    narrow = shape_of("llama3.1-8b:4b-width+num_hidden_layers=3+vocab_size=500")
    assert (narrow.hidden_size, narrow.num_hidden_layers, narrow.vocab_size) == (3072, 3, 500)
    assert shape_of("llama3.1-8b") == LLAMA


@pytest.mark.parametrize(
    ("shape", "word"),
    [
        ("layr", "layer"),
        ("layer+", "has no"),
        ("layer+hidden_size=0", "hidden_size=0"),
        ("layers=1", "layers=1"),
    ],
)
def test_other_parts_are_refused(shape: str, word: str) -> None:
    with pytest.raises(UsageError, match=r".") as caught:
        shape_of(f"llama3.1-8b:{shape}")
    assert word in str(caught.value)


def test_a_checkpoint_of_a_shape_loads_in_transformers(tmp_path: Path) -> None:
    dims = PRESETS["smollm2-135m"].dims.with_shape(num_hidden_layers=2, vocab_size=300, intermediate_size=64)
    write_shape(dims, tmp_path / "shape", seed=3)
    write_random_checkpoint(tmp_path / "shape", tmp_path / "checkpoint")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters(dims)
    assert float(model.model.layers[1].mlp.up_proj.weight.detach().float().std()) == pytest.approx(
        0.02, rel=0.05
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "checkpoint").eos_token_id == 0
