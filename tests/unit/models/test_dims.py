from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from compressor.core.errors import UnsupportedError
from compressor.models.dims import (
    Dims,
    check_shape,
    dims_of_config,
    flops_per_token,
    kv_cache_bytes_per_token,
    num_linear_parameters,
    num_non_embedding_parameters,
    num_parameters,
    weight_bytes,
)
from compressor.models.presets import PRESETS, preset_of_dims
from tests.tiny_models import MODEL_TYPES, make_model
from tests.unit.models.config.published import TINY

# Minitron, arXiv 2407.14679 and 2408.11796; Sheared LLaMA, arXiv 2310.06694.
PUBLISHED = {
    "llama3.1-8b": (8_030_261_248, 6_979_588_096),
    "4b-width": (4_512_746_496, 3_724_741_632),
    "4b-depth": (4_540_469_248, 3_489_796_096),
    "mistral-nemo-12b": (12_247_782_400, 10_905_605_120),
    "mn-minitron-8b": (8_414_105_600, 7_340_363_776),
    "sheared-1.3b": (1_345_423_360, None),
    "sheared-2.7b": (2_701_560_320, None),
    "smollm2-135m": (134_515_008, None),
}
ROUNDED = {
    "nemotron4-15b": (15.6e9, 12.5e9),
    "minitron-8b": (8.27e9, 6.2e9),
    "minitron-4b": (4.19e9, 2.6e9),
    "nemotron3-8b": (8.5e9, 6.4e9),
}


@pytest.mark.parametrize("alias", [*PUBLISHED, *ROUNDED])
def test_published_counts(alias: str) -> None:
    dims = PRESETS[alias].dims
    total, non_embedding = {**PUBLISHED, **ROUNDED}[alias]
    tolerance = 0.015 if alias in ROUNDED else 0

    assert num_parameters(dims) == pytest.approx(total, rel=tolerance)
    if non_embedding is not None:
        assert num_non_embedding_parameters(dims) == pytest.approx(non_embedding, rel=tolerance)


@pytest.mark.parametrize("alias", PRESETS)
def test_counts_equal_the_model_class(alias: str) -> None:
    model = on_meta_device(PRESETS[alias].dims)

    assert num_parameters(PRESETS[alias].dims) == sum(tensor.numel() for tensor in model.parameters())
    assert dims_of_config(model.config.to_dict()) == PRESETS[alias].dims


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_counts_of_tiny_models(model_type: str, tie_word_embeddings: bool) -> None:
    model = make_model(model_type, tie_word_embeddings=tie_word_embeddings)
    dims = dims_of_config(model.config.to_dict())
    linear = [module for module in model.model.modules() if isinstance(module, torch.nn.Linear)]

    assert num_parameters(dims) == sum(tensor.numel() for tensor in model.parameters())
    assert num_linear_parameters(dims) == sum(module.weight.numel() for module in linear)


def on_meta_device(dims: Dims) -> Any:
    fields = asdict(dims)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))


def test_targets_of_presets_are_presets() -> None:
    for preset in PRESETS.values():
        for alias in preset.targets.values():
            assert PRESETS[alias].dims.model_type == preset.dims.model_type
            assert num_parameters(PRESETS[alias].dims) < num_parameters(preset.dims)
        assert preset_of_dims(preset.dims) is preset


def test_config_without_optional_fields_means_the_class_defaults() -> None:
    dims = dims_of_config({name: value for name, value in TINY.items() if name != "num_key_value_heads"})

    assert (dims.num_key_value_heads, dims.head_dim, dims.tie_word_embeddings) == (4, 16, False)


@pytest.mark.parametrize("value", [None, 0, -1, "64", 6.4])
def test_config_with_an_unusable_field(value: object) -> None:
    config = {**PRESETS["smollm2-135m"].dims.to_dict(), "intermediate_size": value}

    with pytest.raises(UnsupportedError, match="no usable intermediate_size"):
        dims_of_config(dict(config))


@pytest.mark.parametrize("model_type", ["smollm3", "qwen3_moe", "llama4", "mixtral"])
def test_an_unknown_model_type_is_not_taken_for_a_misspelt_one(model_type: str) -> None:
    with pytest.raises(UnsupportedError, match=f"'{model_type}' is not supported") as caught:
        dims_of_config({"model_type": model_type})
    assert "did you mean" not in str(caught.value)


def test_memory_and_flops_by_hand() -> None:
    dims = Dims(
        model_type="llama",
        hidden_size=4,
        intermediate_size=6,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=3,
        vocab_size=10,
        tie_word_embeddings=False,
    )
    linear = 2 * (4 * 3 * 2 * 3 + 3 * 4 * 6)
    rest = 2 * 10 * 4 + 5 * 4

    assert num_linear_parameters(dims) == linear
    assert num_parameters(dims) == linear + rest
    assert weight_bytes(dims, "bf16") == 2 * (linear + rest)
    assert weight_bytes(dims, "fp8") == linear + 2 * rest
    assert kv_cache_bytes_per_token(dims) == 2 * 2 * 1 * 3 * 2
    assert flops_per_token(dims) == 2 * (linear + 10 * 4)
    # Scores and weighted values: two multiply-adds per head dimension, key and layer.
    assert flops_per_token(dims, 5) - flops_per_token(dims) == 2 * 2 * (2 * 2 * 3) * 5


def test_fewer_query_heads_than_groups_need_fewer_groups() -> None:
    """Where every query head has a key/value head of its own, no multiple of these is smaller."""
    dims = PRESETS["llama2-7b"].dims
    with pytest.raises(UnsupportedError) as refused:
        check_shape(dims.with_shape(num_attention_heads=16))
    assert "num_key_value_heads=16" in str(refused.value.hint)
    check_shape(dims.with_shape(num_attention_heads=16, num_key_value_heads=16))
    with pytest.raises(UnsupportedError) as refused:
        check_shape(PRESETS["llama3.1-8b"].dims.with_shape(num_attention_heads=20))
    assert "a multiple of 8" in str(refused.value.hint)
