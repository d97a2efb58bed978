"""Scores from the weights against what plain transformers models without a unit lack, or lose by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.models.checkpoint import CheckpointReader
from compressor.models.dims import dims_of_config
from compressor.pruning.importance import ImportanceScores, weight_magnitude_importance
from compressor.pruning.plan import make_plan
from tests.tiny_models import make_model, save_checkpoint

FAMILIES = ["llama", "mistral", "phi3", "qwen2", "qwen3"]
HEAD_DIM = 16


def scores_of(model: Any, directory: Path) -> ImportanceScores:
    checkpoint = save_checkpoint(directory / "model", model)
    with CheckpointReader(checkpoint) as reader:
        return weight_magnitude_importance(reader, dims_of_config(model.config.to_dict()))


def num_matrix_weights(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("num_key_value_heads", [2, 4])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_unit_counts_every_weight_that_a_model_without_it_lacks(
    model_type: str, num_key_value_heads: int, tied: bool, tmp_path: Path
) -> None:
    """Where every weight is one, a sum of squares is a count."""

    def model_of(**sizes: int) -> Any:
        shape = {"num_hidden_layers": 2, "num_key_value_heads": num_key_value_heads, **sizes}
        return make_model(model_type, tie_word_embeddings=tied, **shape)

    model = model_of()
    for parameter in model.parameters():
        parameter.fill_(1.0)
    counts = {axis: found.square() for axis, found in scores_of(model, tmp_path).units.items()}
    whole = num_matrix_weights(model)

    # Classes demand that the heads divide the hidden size: so four channels go, and half of the heads.
    fewer = {"hidden": model_of(hidden_size=60), "intermediate": model_of(intermediate_size=191)}
    assert counts["hidden"][:4].sum().item() == pytest.approx(whole - num_matrix_weights(fewer["hidden"]))
    neuron = counts["intermediate"][:, 0].sum().item()
    assert neuron == pytest.approx(whole - num_matrix_weights(fewer["intermediate"]))
    half = model_of(num_attention_heads=2, num_key_value_heads=num_key_value_heads // 2)
    assert counts["heads"][:, :2].sum().item() == pytest.approx(whole - num_matrix_weights(half))


@pytest.mark.parametrize("num_key_value_heads", [1, 2, 4])
def test_heads_score_by_their_own_and_a_share_of_shared_weights(
    num_key_value_heads: int, tmp_path: Path
) -> None:
    model = make_model(num_key_value_heads=num_key_value_heads)
    found = scores_of(model, tmp_path).units["heads"]
    group_size = 4 // num_key_value_heads
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        for head in range(4):
            own = slice(HEAD_DIM * head, HEAD_DIM * (head + 1))
            shared = slice(HEAD_DIM * (head // group_size), HEAD_DIM * (head // group_size + 1))
            queries, output = attention.q_proj.weight[own].double(), attention.o_proj.weight[:, own].double()
            keys, values = (part.weight[shared].double() for part in (attention.k_proj, attention.v_proj))
            total = queries.square().sum() + output.square().sum()
            total += (keys.square().sum() + values.square().sum()) / group_size
            torch.testing.assert_close(found[index, head], total.sqrt())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_channel_scores_by_an_lm_head_of_its_own(tied: bool, tmp_path: Path) -> None:
    model = make_model(tie_word_embeddings=tied)
    total = torch.zeros(64, dtype=torch.float64)
    for name, parameter in model.named_parameters():  # a tied head is not among them
        if parameter.dim() == 2:
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            total += parameter.double().square().sum(1 if writes else 0)
    torch.testing.assert_close(scores_of(model, tmp_path).units["hidden"], total.sqrt())


@pytest.mark.parametrize("part", ["k_proj", "v_proj"])
@pytest.mark.parametrize("num_key_value_heads", [2, 4])
def test_large_keys_or_values_keep_their_group(num_key_value_heads: int, part: str, tmp_path: Path) -> None:
    """The last group stays, though its query heads' own weights are the smaller ones."""
    model = make_model(num_key_value_heads=num_key_value_heads)
    group_size = 4 // num_key_value_heads
    last = HEAD_DIM * (num_key_value_heads - 1)
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight[last * group_size :] *= 0.9
        getattr(layer.self_attn, part).weight[last:] *= 10.0
    dims = dims_of_config(model.config.to_dict())
    student = dims.with_shape(num_attention_heads=group_size, num_key_value_heads=1)
    kept = make_plan(dims, student, scores_of(model, tmp_path), importance="weight-magnitude").kept
    assert kept["kv_heads"] == ((num_key_value_heads - 1,),) * 3
    assert kept["heads"] == (tuple(range(4 - group_size, 4)),) * 3
