"""Taylor scores against gradients of plain transformers in float64, added up unit by unit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.core.console import Console
from compressor.models.dims import dims_of_config
from compressor.pruning.importance import ScoringInputs, taylor_method
from compressor.recipe.recipe import Prune
from compressor.runs.stage import StageContext
from tests.tiny_models import VOCAB_SIZE, make_model, save_checkpoint

WINDOWS = np.random.default_rng(0).integers(0, VOCAB_SIZE, (3, 20)).astype(np.uint32)


def products_by_hand(checkpoint: Path) -> dict[str, torch.Tensor]:
    """|weight * gradient| of the mean cross-entropy, which is written out here."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64)
    ids = torch.from_numpy(WINDOWS.astype("int64"))
    log_probabilities = torch.log_softmax(model(ids).logits[:, :-1], dim=-1)
    (-log_probabilities.gather(-1, ids[:, 1:, None]).mean()).backward()
    return {name: (parameter * parameter.grad).abs().detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("num_key_value_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [False, True])
def test_the_scores_are_sums_over_units(tied: bool, num_key_value_heads: int, tmp_path: Path) -> None:
    model = make_model(num_hidden_layers=3, tie_word_embeddings=tied, num_key_value_heads=num_key_value_heads)
    checkpoint = save_checkpoint(tmp_path / "model", model)
    context = StageContext(console=Console(), seed=0, device="cpu", dtype="float32")
    dims = dims_of_config(model.config.to_dict())
    scores = taylor_method(
        ScoringInputs(checkpoint=checkpoint, dims=dims, settings=Prune(), context=context, windows=WINDOWS)
    )
    products = products_by_hand(checkpoint)

    def of(layer: int, name: str) -> torch.Tensor:
        return products[f"model.layers.{layer}.{name}_proj.weight"]

    gate, up, down = (of(1, f"mlp.{name}") for name in ("gate", "up", "down"))
    neuron = gate[7].sum() + up[7].sum() + down[:, 7].sum()
    torch.testing.assert_close(scores.units["intermediate"][1, 7], neuron, rtol=1e-4, atol=0.0)
    for head in range(4):
        group_size = 4 // num_key_value_heads
        group = head // group_size
        queries, keys = slice(16 * head, 16 * head + 16), slice(16 * group, 16 * group + 16)
        found = of(2, "self_attn.q")[queries].sum() + of(2, "self_attn.o")[:, queries].sum()
        found += (of(2, "self_attn.k")[keys].sum() + of(2, "self_attn.v")[keys].sum()) / group_size
        torch.testing.assert_close(scores.units["heads"][2, head], found, rtol=1e-4, atol=0.0)
    outside = ["model.embed_tokens.weight"] if tied else ["model.embed_tokens.weight", "lm_head.weight"]
    channel = sum(products[name][:, 5].sum() for name in outside)
    for layer in range(3):
        channel += sum(of(layer, f"self_attn.{name}")[:, 5].sum() for name in "qkv")
        channel += sum(of(layer, f"mlp.{name}")[:, 5].sum() for name in ("gate", "up"))
        channel += of(layer, "self_attn.o")[5].sum() + of(layer, "mlp.down")[5].sum()
    torch.testing.assert_close(scores.units["hidden"][5], channel, rtol=1e-4, atol=0.0)
    block = sum(
        product.sum()
        for name, product in products.items()
        if name.startswith(("model.layers.1.", "model.layers.2.")) and "norm" not in name
    )
    torch.testing.assert_close(scores.blocks[1, 3], block, rtol=1e-4, atol=0.0)
