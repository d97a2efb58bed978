"""A masked model against plain transformers: the student cut by hand, and the model with folded weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.masks.applied import MaskValues, fold_, kept_mask, masked
from compressor.models.axes import PRUNABLE_AXES
from compressor.models.dims import dims_of_config
from compressor.pruning.plan import PrunePlan
from tests.tiny_models import make_model

LAYERS = (0, 2)
HIDDEN = (*range(1, 64, 2), 0, 2, 40)
# Of 8 query heads in 2 groups of 4: two of each group, others in each layer.
HEADS = ((0, 3, 5, 6), (1, 2, 4, 7))
NEURONS = (tuple(range(0, 192, 2)), tuple(range(50, 146)))
FAMILIES = ["llama", "mistral", "phi3", "qwen2", "qwen3"]


def model_of(model_type: str, *, tied: bool) -> Any:
    eps = {"rms_norm_eps": 0.05}  # large, so that it would show in the wrong place
    return make_model(
        model_type,
        tie_word_embeddings=tied,
        num_attention_heads=8,
        head_dim=8,
        hidden_size=64,
        **eps,
    )


def plan_of(model: Any) -> PrunePlan:
    dims = dims_of_config(model.config.to_dict())
    kept = {"hidden": (tuple(sorted(HIDDEN)),), "heads": HEADS, "intermediate": NEURONS}
    return PrunePlan(importance="by hand", source=dims, layers=LAYERS, kept=kept)


def student_by_hand(model: Any) -> Any:
    """A plain model of the student's shape whose weights are picked by their names."""
    config = type(model.config)(**model.config.to_dict())
    config.hidden_size, config.intermediate_size = len(HIDDEN), len(NEURONS[0])
    config.num_hidden_layers, config.num_attention_heads = len(LAYERS), len(HEADS[0])
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in LAYERS]
    for name in ("hidden_size", "intermediate_size"):
        assert getattr(config, name) < getattr(model.config, name)
    student = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    state = model.state_dict()
    channels = torch.tensor(sorted(HIDDEN))
    found = {}
    for name in student.state_dict():
        parts = name.split(".")
        is_layer = parts[:2] == ["model", "layers"]
        if not is_layer:
            found[name] = state[name].index_select(state[name].dim() - 1, channels)
            continue
        position = int(parts[2])
        tensor = state[".".join([*parts[:2], str(LAYERS[position]), *parts[3:]])]
        found[name] = picked(parts[-2], tensor, position, channels)
    student.load_state_dict(found)
    return student


def picked(module: str, tensor: torch.Tensor, position: int, channels: torch.Tensor) -> torch.Tensor:
    neurons = torch.tensor(NEURONS[position])
    queries = torch.cat([torch.arange(head * 8, head * 8 + 8) for head in HEADS[position]])
    keys_and_values = torch.arange(64, 64 + 2 * 2 * 8)
    rows = {
        "q_proj": queries,
        "qkv_proj": torch.cat([queries, keys_and_values]),
        "o_proj": channels,
        "down_proj": channels,
        "gate_proj": neurons,
        "up_proj": neurons,
        "gate_up_proj": torch.cat([neurons, 192 + neurons]),
        "input_layernorm": channels,
        "post_attention_layernorm": channels,
    }.get(module)
    if rows is not None:
        tensor = tensor[rows]
    if tensor.dim() == 1:
        return tensor
    return tensor[:, {"o_proj": queries, "down_proj": neurons}.get(module, channels)]


def ids() -> torch.Tensor:
    return torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_zeros_and_ones_give_the_student_cut_by_hand(model_type: str, tied: bool) -> None:
    model = model_of(model_type, tied=tied)
    plan = plan_of(model)
    plain = model(ids()).logits
    with masked(model, lambda: kept_mask(plan)):
        found = model(ids()).logits
    expected = student_by_hand(model)(ids()).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - plain).abs().max() > 0.1
    assert torch.equal(model(ids()).logits, plain)  # the hooks are gone


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_folded_weights_compute_what_the_masks_did(model_type: str, tied: bool) -> None:
    model = model_of(model_type, tied=tied)
    kept = kept_mask(plan_of(model))
    generator = torch.Generator().manual_seed(0)
    soft = {
        name: mask * (0.2 + torch.rand(mask.shape, generator=generator))
        for name, mask in kept.named().items()
    }
    layers = soft.pop("layers")
    values = MaskValues(units=soft, layers=layers)
    with masked(model, lambda: values):
        expected = model(ids()).logits
    fold_(model, values)
    with masked(model, lambda: kept):
        torch.testing.assert_close(model(ids()).logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(student_by_hand(model)(ids()).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", [*PRUNABLE_AXES, "layers"])
def test_each_mask_acts_alone_and_passes_gradients(axis: str) -> None:
    model = model_of("llama", tied=True)
    mask = kept_mask(plan_of(model)).named()[axis].mul(0.5).add(0.25).requires_grad_()
    values = MaskValues(layers=mask) if axis == "layers" else MaskValues(units={axis: mask})
    with masked(model, lambda: values):
        model(ids()).logits.square().mean().backward()
    assert mask.grad is not None
    assert (mask.grad != 0).all()


def test_hooks_go_where_a_forward_pass_fails(tiny_model: Any) -> None:
    expected = tiny_model(ids()).logits
    with pytest.raises(ZeroDivisionError), masked(tiny_model, lambda: 1 / 0):  # type: ignore[arg-type,return-value]
        tiny_model(ids())
    assert torch.equal(tiny_model(ids()).logits, expected)
