"""The engine against the whole model: the same statistics, and later layers that see changed ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compressor.calibration.sequential import STATES_FILE, LayerVisit, run_sequentially
from compressor.core.errors import VerificationError
from compressor.models.adapter import ModelAdapter
from compressor.models.load import load_model
from tests.tiny_models import VOCAB_SIZE, make_model, save_checkpoint

WINDOWS = np.random.default_rng(0).integers(0, VOCAB_SIZE, (3, 20)).astype(np.uint32)


def grams_of_whole_model(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """float64 Gram matrices of every linear layer, from ordinary forward passes."""
    grams: dict[str, torch.Tensor] = {}
    handles = []
    for index, layer in enumerate(ModelAdapter(model).layers):
        for name, linear in layer.linear_layers().items():

            def observe(_m: object, args: tuple[torch.Tensor], key: str = f"{index}.{name}") -> None:
                x = args[0].flatten(0, -2).double()
                grams[key] = grams.get(key, 0) + x.T @ x

            handles.append(linear.register_forward_pre_hook(observe))
    with torch.no_grad():
        for window in WINDOWS:
            model(torch.from_numpy(window.astype("int64"))[None])
    for handle in handles:
        handle.remove()
    return grams


def walk(
    checkpoint: Path, scratch: Path, change: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, Path]]:
    seen = {}

    def visit(layer: LayerVisit) -> dict[str, torch.Tensor]:
        for name, gram in layer.grams.items():
            seen[f"{layer.index}.{name}"] = gram.total.clone()
            assert gram.num_tokens == WINDOWS.size
        name = "mlp.down_proj"
        return {name: layer.linears[name].weight * 0.5} if change else {}

    scratch.mkdir()
    changed = run_sequentially(checkpoint, WINDOWS, visit, scratch=scratch, dtype=torch.float32, device="cpu")
    return seen, changed


@pytest.mark.parametrize("model_type", ["llama", "mistral", "nemotron"])
def test_statistics_equal_the_whole_models(model_type: str, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "model", make_model(model_type))
    seen, _ = walk(checkpoint, tmp_path / "scratch")
    expected = grams_of_whole_model(load_model(checkpoint, dtype="float32", device="cpu"))
    assert set(seen) == set(expected)
    for name, gram in expected.items():
        assert (seen[name] - gram).abs().max() < 1e-4 * gram.abs().max(), name
    assert not (tmp_path / "scratch" / STATES_FILE).exists()


def test_later_layers_see_what_earlier_ones_became(tiny_checkpoint: Path, tmp_path: Path) -> None:
    seen, changed = walk(tiny_checkpoint, tmp_path / "scratch", change=True)
    model = load_model(tiny_checkpoint, dtype="float32", device="cpu")
    for layer in ModelAdapter(model).layers:
        layer.module.mlp.down_proj.weight.data.mul_(0.5)
    expected = grams_of_whole_model(model)
    for name, gram in expected.items():
        assert (seen[name] - gram).abs().max() < 1e-4 * gram.abs().max(), name
    weight = "model.layers.1.mlp.down_proj.weight"
    assert len(changed) == 3
    assert torch.equal(load_file(changed[weight])[weight], model.get_parameter(weight))


def test_a_non_finite_activation_is_named(tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[0, 0] = float("inf")
    checkpoint = save_checkpoint(tmp_path / "model", model)
    with pytest.raises(VerificationError, match=r"layers\.1\.self_attn\.o_proj"):
        walk(checkpoint, tmp_path / "scratch")
