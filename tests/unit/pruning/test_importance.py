"""Importance scores against brute force on whole activations, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.calibration.statistics import BatchAggregate, cosine_sums, over_sequence
from compressor.core.errors import VerificationError
from compressor.models.adapter import ModelAdapter
from compressor.models.checkpoint import CheckpointReader, read_config
from compressor.models.dims import dims_of_config
from compressor.pruning.importance import (
    activation_importance,
    weight_magnitude_importance,
)

WINDOWS = np.random.default_rng(0).integers(0, 320, (3, 24)).astype(np.uint32)


def captured(model: Any, module: torch.nn.Module, *, output: bool = False) -> torch.Tensor:
    """A module's input (or output) for every window, `[windows, seq, channels]` in float64."""
    seen: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, args: Any, result: Any) -> None:
        value = result if output else args[0]
        seen.append((value[0] if isinstance(value, tuple) else value)[0].double())

    handle = module.register_forward_hook(keep)
    for window in WINDOWS:
        model.model(torch.from_numpy(window.astype("int64"))[None])
    handle.remove()
    return torch.stack(seen)


def aggregate(x: torch.Tensor, kind: str, dim: int) -> torch.Tensor:
    return {
        "mean": x.abs().mean(dim),
        "l2": x.square().sum(dim).sqrt(),
        "var": x.var(dim, correction=0),
    }[kind]


@pytest.mark.parametrize("batch", ["l2", "mean", "var"])
@pytest.mark.parametrize("sequence", ["mean", "l2", "var"])
def test_scores_equal_brute_force(tiny_model: Any, batch: Any, sequence: Any) -> None:
    scores = activation_importance(
        ModelAdapter(tiny_model), WINDOWS, batch_aggregation=batch, sequence_aggregation=sequence
    )
    hidden = torch.zeros(64, dtype=torch.float64)
    for index, layer in enumerate(ModelAdapter(tiny_model).layers):
        neurons = captured(tiny_model, layer.module.mlp.down_proj)
        expected = aggregate(aggregate(neurons, sequence, 1), batch, 0)
        torch.testing.assert_close(scores.units["intermediate"][index], expected, rtol=1e-4, atol=1e-7)
        heads = captured(tiny_model, layer.module.self_attn.o_proj).unflatten(-1, (4, 16)).norm(dim=-1)
        expected = aggregate(aggregate(heads, sequence, 1), batch, 0)
        torch.testing.assert_close(scores.units["heads"][index], expected, rtol=1e-4, atol=1e-7)
        for norm in (layer.module.input_layernorm, layer.module.post_attention_layernorm):
            outputs = captured(tiny_model, norm, output=True)
            hidden += aggregate(aggregate(outputs, sequence, 1), batch, 0)
    torch.testing.assert_close(scores.units["hidden"], hidden, rtol=1e-4, atol=1e-7)


def test_block_influence_equals_brute_force_for_every_block(tiny_model: Any) -> None:
    scores = activation_importance(ModelAdapter(tiny_model), WINDOWS)
    layers = [layer.module for layer in ModelAdapter(tiny_model).layers]
    states = [captured(tiny_model, layer) for layer in layers]
    states.append(captured(tiny_model, layers[-1], output=True))
    for first in range(4):
        for last in range(first + 1, 4):
            cosine = torch.nn.functional.cosine_similarity(states[first], states[last], dim=-1)
            assert scores.blocks[first, last].item() == pytest.approx(1 - cosine.mean().item(), abs=1e-5)


def test_hooks_are_removed_when_the_forward_raises(tiny_model: Any) -> None:
    def fail() -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        activation_importance(ModelAdapter(tiny_model), WINDOWS, on_window=fail)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_model.modules())


def test_statistics_are_float32_inside_autocast() -> None:
    x = torch.randn(1, 100, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        score = over_sequence(x, "mean")
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, x.float().abs().mean(1))


def test_batches_add_up_like_one_batch() -> None:
    scores = torch.rand(6, 5)
    together, apart = BatchAggregate("var"), BatchAggregate("var")
    together.add(scores)
    for row in scores:
        apart.add(row[None])
    torch.testing.assert_close(together.result(), apart.result())


def test_cosine_sums_do_not_depend_on_the_chunk() -> None:
    states = [torch.randn(50, 16) for _ in range(4)]
    torch.testing.assert_close(
        cosine_sums(states, chunk_tokens=7), cosine_sums(states, chunk_tokens=50), rtol=1e-5, atol=1e-5
    )


def test_a_nan_is_named(tiny_model: Any) -> None:
    ModelAdapter(tiny_model).layers[1].module.mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(VerificationError, match="not finite"):
        activation_importance(ModelAdapter(tiny_model), WINDOWS)


def test_weight_magnitude_counts_all_weights_of_a_unit(tiny_checkpoint: Path) -> None:
    dims = dims_of_config(read_config(tiny_checkpoint))
    with CheckpointReader(tiny_checkpoint) as reader:
        scores = weight_magnitude_importance(reader, dims)
        gate, up, down = (
            reader.tensor(f"model.layers.1.mlp.{name}_proj.weight").double()
            for name in ("gate", "up", "down")
        )
    expected = (gate[5].square().sum() + up[5].square().sum() + down[:, 5].square().sum()).sqrt()
    torch.testing.assert_close(scores.units["intermediate"][1, 5], expected)
