"""A sliced model equals the original with the same units zeroed and norms over the kept channels."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from compressor.core.errors import UnsupportedError, VerificationError
from compressor.models.adapter import ModelAdapter
from compressor.models.checkpoint import read_config, whole, write_checkpoint
from compressor.models.dims import num_parameters
from compressor.models.load import load_model
from compressor.pruning.plan import PrunePlan
from compressor.pruning.slicing import slice_checkpoint
from tests.plans import random_plan
from tests.tiny_models import MODEL_TYPES, edit_tensors, make_model, save_checkpoint

SHAPES: dict[str, dict[str, int]] = {
    "intermediate": {"intermediate_size": 128},
    "hidden": {"hidden_size": 48},
    "heads": {"num_attention_heads": 2},
    "groups": {"num_key_value_heads": 1, "num_attention_heads": 2},
    "heads of a group": {"num_key_value_heads": 1, "num_attention_heads": 1},
    "depth": {"num_hidden_layers": 2},
    "all": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2},
}


def zeroed_reference(checkpoint: Path, plan: PrunePlan) -> Any:
    """The original with removed units zeroed, removed layers bypassed, norms over kept channels."""
    model = load_model(checkpoint, dtype="float32", device="cpu")
    adapter, dims = ModelAdapter(model), ModelAdapter(model).dims
    kept_hidden = torch.zeros(dims.hidden_size)
    kept_hidden[list(plan.kept["hidden"][0])] = 1
    model.get_input_embeddings().weight.mul_(kept_hidden)
    layers = adapter.layers
    for position, index in enumerate(plan.layers):
        layer = layers[index]
        neurons = torch.zeros(dims.intermediate_size)
        neurons[list(plan.kept["intermediate"][position])] = 1
        heads = torch.zeros(dims.num_attention_heads, dims.head_dim)
        heads[list(plan.kept["heads"][position])] = 1
        layer.module.mlp.down_proj.weight.mul_(kept_hidden[:, None] * neurons)
        layer.module.self_attn.o_proj.weight.mul_(kept_hidden[:, None] * heads.flatten())
    model.model.layers = torch.nn.ModuleList(layers[index].module for index in plan.layers)
    for position, module in enumerate(model.model.layers):
        module.self_attn.layer_idx = position
    for norm in hidden_norms(model):
        norm.forward = _norm_over(kept_hidden, norm)
    model.config.num_hidden_layers = len(plan.layers)
    return model


def hidden_norms(model: Any) -> list[Any]:
    """Norms over the hidden channels; those of single heads are left alone."""
    norms = [m for m in model.modules() if type(m).__name__.endswith(("RMSNorm", "LayerNorm1P"))]
    return [norm for norm in norms if norm.weight.shape[0] == model.config.hidden_size]


def _norm_over(kept: torch.Tensor, norm: Any) -> Any:
    def centred(x: torch.Tensor) -> torch.Tensor:
        mean = (x * kept).sum(-1, keepdim=True) / kept.sum()
        variance = ((x - mean) * kept).square().sum(-1, keepdim=True) / kept.sum()
        return ((x - mean) * torch.rsqrt(variance + norm.eps) * (norm.weight + 1) + norm.bias) * kept

    def forward(x: torch.Tensor) -> torch.Tensor:
        mean_square = (x * kept).square().sum(-1, keepdim=True) / kept.sum()
        return norm.weight * kept * x * torch.rsqrt(mean_square + norm.variance_epsilon)

    return centred if hasattr(norm, "bias") else forward


def slices_to_its_reference(checkpoint: Path, shape: dict[str, int], scratch: Path) -> None:
    plan, out = random_plan(checkpoint, **shape), scratch / "out"
    out.mkdir()
    num_written = slice_checkpoint(checkpoint, plan, out)
    student = load_model(out, dtype="float32", device="cpu")
    ids = torch.randint(0, 300, (2, 40))
    expected, found = zeroed_reference(checkpoint, plan)(ids).logits, student(ids).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert num_written == num_parameters(plan.student) == sum(p.numel() for p in student.parameters())


@pytest.mark.parametrize("axis", SHAPES)
def test_sliced_model_equals_zeroed_reference(any_checkpoint: Path, tmp_path: Path, axis: str) -> None:
    slices_to_its_reference(any_checkpoint, SHAPES[axis], tmp_path)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_slices_to_its_zeroed_reference(tmp_path: Path, model_type: str) -> None:
    checkpoint = save_checkpoint(tmp_path / "model", make_model(model_type, tie_word_embeddings=False))
    slices_to_its_reference(checkpoint, SHAPES["all"], tmp_path)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_loses_groups_of_heads(tmp_path: Path, model_type: str) -> None:
    """Eight query heads, four of them on two of four key/value heads that stay; and every head its own."""
    shape = {**SHAPES["all"], "num_key_value_heads": 2, "num_attention_heads": 2}
    for keys in (4, 8):
        model = make_model(model_type, num_attention_heads=8, num_key_value_heads=keys, head_dim=8)
        root = tmp_path / str(keys)
        root.mkdir()
        slices_to_its_reference(save_checkpoint(root / "model", model), shape, root)


def test_keeping_everything_changes_nothing(any_checkpoint: Path, tmp_path: Path) -> None:
    slice_checkpoint(any_checkpoint, random_plan(any_checkpoint), tmp_path)
    ids = torch.randint(0, 300, (1, 16))
    models = [load_model(path, dtype="float32", device="cpu") for path in (any_checkpoint, tmp_path)]
    assert torch.equal(models[0](ids).logits, models[1](ids).logits)


def test_config_has_explicit_head_dim_and_both_rope_spellings(tiny_checkpoint: Path, tmp_path: Path) -> None:
    slice_checkpoint(tiny_checkpoint, random_plan(tiny_checkpoint, **SHAPES["all"]), tmp_path)
    config = read_config(tmp_path)
    assert config["head_dim"] == 16 != config["hidden_size"] // config["num_attention_heads"] // 2
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 50_000.0


def test_dtype_is_cast_and_written_to_the_config(tiny_checkpoint: Path, tmp_path: Path) -> None:
    slice_checkpoint(tiny_checkpoint, random_plan(tiny_checkpoint), tmp_path, dtype=torch.bfloat16)
    assert read_config(tmp_path)["dtype"] == read_config(tmp_path)["torch_dtype"] == "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_plan_of_another_model_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    plan = random_plan(tiny_checkpoint)
    other = plan.model_copy(update={"source": plan.source.with_shape(hidden_size=65)})
    with pytest.raises(VerificationError, match="another model"):
        slice_checkpoint(tiny_checkpoint, other, tmp_path)


def test_an_unknown_tensor_is_refused_by_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    write_checkpoint(tmp_path / "in", [whole("model.layers.0.mlp.extra.weight", torch.zeros(4, 4))])
    with pytest.raises(UnsupportedError, match=r"mlp\.extra"):
        slice_checkpoint(tmp_path / "in", random_plan(tiny_checkpoint), tmp_path / "out")


def test_a_head_that_repeats_the_embedding_goes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source, out_dir = tmp_path / "source", tmp_path / "student"
    shutil.copytree(tiny_checkpoint, source)
    out_dir.mkdir()
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    edit_tensors(source, lambda tensors: tensors.update({head: tensors[embedding].clone()}))
    plan = random_plan(source, **SHAPES["hidden"])
    num_written = slice_checkpoint(source, plan, out_dir)
    assert num_written == num_parameters(plan.student)
    assert "lm_head.weight" not in load_file(out_dir / "model.safetensors")


def test_reference_differs_when_norms_see_all_channels(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The reference's norms matter: without them the comparison above would fail."""
    plan = random_plan(tiny_checkpoint, **SHAPES["hidden"])
    slice_checkpoint(tiny_checkpoint, plan, tmp_path)
    reference = zeroed_reference(tiny_checkpoint, plan)
    for norm in hidden_norms(reference):
        del norm.forward
    ids = torch.randint(0, 300, (1, 16))
    expected, found = reference(ids).logits, load_model(tmp_path, dtype="float32", device="cpu")(ids).logits
    assert (found - expected).abs().max() > 1e-3 * expected.abs().max()
