"""The walk against whole models run again for every step, with every token in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.calibration.rewrite import read_kept
from compressor.calibration.stream import Stream
from compressor.models.checkpoint import CheckpointReader
from compressor.models.dims import dims_of_config
from compressor.models.load import load_model
from compressor.pruning.importance import random_importance
from compressor.pruning.plan import PrunePlan, make_plan
from compressor.pruning.rotation import Rotation
from compressor.pruning.slicing import slice_checkpoint
from compressor.repair.choice import RIDGES, use_of
from compressor.repair.walk import Walk
from tests.tiny_models import VOCAB_SIZE, make_model, save_checkpoint

NUM_WINDOWS = 16
WINDOWS = np.random.default_rng(0).integers(0, VOCAB_SIZE, (NUM_WINDOWS, 24)).astype(np.uint32)
SHAPES = {
    "width": {"hidden_size": 48, "intermediate_size": 96},
    "heads": {"num_attention_heads": 2},
    "depth": {"num_hidden_layers": 2},
}
ROUNDING = 1e-8
WRITERS = ("self_attn.o_proj", "mlp.down_proj")


class Recorded:
    """Every linear layer's input and output and every layer's streams, of all windows, in float64."""

    def __init__(self, model: Any) -> None:
        self.seen: dict[str, list[torch.Tensor]] = {}
        handles = []
        for name, module in model.named_modules():
            if "layers." in name or name.endswith("norm"):
                handles.append(module.register_forward_hook(self._hook(name)))
        with torch.no_grad():
            for window in WINDOWS:
                model(torch.from_numpy(window.astype("int64"))[None])
        for handle in handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], output: Any) -> None:
            for key, value in (("in", args[0] if args else None), ("out", output)):
                states = value[0] if isinstance(value, tuple) else value
                if isinstance(states, torch.Tensor):
                    self.seen.setdefault(f"{name}:{key}", []).append(states.flatten(0, -2).double())

        return hook

    def of(self, place: str) -> torch.Tensor:
        """`[windows, tokens, channels]`."""
        return torch.stack(self.seen[place])


def by_hand(teacher: Any, student: Any, plan: PrunePlan, components: torch.Tensor) -> dict[str, bool]:
    """Repair a whole student in place; which weights changed.

    The columns of `components` are the directions that the plan counts as hidden channels.
    """
    changed = {}
    hidden = components.double()[:, list(plan.kept["hidden"][0])]
    original = Recorded(teacher)
    ends = (*plan.layers[1:], plan.source.num_hidden_layers)
    head_dim = plan.source.head_dim
    for index, (own, end) in enumerate(zip(plan.layers, ends, strict=True)):
        heads = (
            torch.tensor(plan.kept["heads"][index])[:, None] * head_dim + torch.arange(head_dim)
        ).flatten()
        neurons = torch.tensor(plan.kept["intermediate"][index])
        theirs, ours = f"model.layers.{own}", f"model.layers.{index}"
        before, between = f"{theirs}:in", f"{theirs}.post_attention_layernorm:in"
        after = f"model.layers.{end}:in" if end < plan.source.num_hidden_layers else "model.norm:in"
        steps = [
            (("self_attn.q_proj", heads), ("self_attn.k_proj", None), ("self_attn.v_proj", None)),
            (("self_attn.o_proj", hidden),),
            (("mlp.gate_proj", neurons), ("mlp.up_proj", neurons)),
            (("mlp.down_proj", hidden),),
        ]
        for step in steps:
            now = Recorded(student)
            for name, kept in step:
                module = student.get_submodule(f"{ours}.{name}")
                inputs = now.of(f"{ours}.{name}:in")
                if name in WRITERS:
                    stream = original.of(between if name == WRITERS[0] else after)
                    start = now.of(
                        f"{ours}:in" if name == WRITERS[0] else f"{ours}.post_attention_layernorm:in"
                    )
                    wanted = stream @ kept - start
                else:
                    stream = original.of(before if "attn" in name else between)
                    wanted = original.of(f"{theirs}.{name}:out")
                    wanted = wanted if kept is None else wanted[..., kept]
                missing = wanted - inputs @ module.weight.double().T
                if module.bias is not None:
                    missing = missing - module.bias.double()
                if missing.square().sum() < ROUNDING * wanted.square().sum():
                    continue  # exact already, so that rounding decides
                scale = stream.square().mean(-1, keepdim=True).sqrt()
                changed[f"{ours}.{name}.weight"] = repair_(module, inputs / scale, missing / scale)
    return changed


def repair_(module: Any, inputs: torch.Tensor, missing: torch.Tensor) -> bool:
    """Choose the ridge and accept, with every token at hand."""

    def part(*uses: str) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = [number for number in range(NUM_WINDOWS) if use_of(number, NUM_WINDOWS) in uses]
        return inputs[chosen].flatten(0, 1), missing[chosen].flatten(0, 1)

    def fitted(ridge: float, *uses: str) -> torch.Tensor:
        x, y = part(*uses)
        strength = ridge * x.square().sum(0).mean()
        change: torch.Tensor = torch.linalg.solve(x.T @ x + strength * torch.eye(x.shape[1]), x.T @ y)
        return change.T

    def error(change: torch.Tensor, use: str, every: int = 1) -> float:
        x, y = part(use)
        return (y - x @ change.T)[:, ::every].square().sum().item()

    every = max(1, missing.shape[-1] // 64)  # outputs that choose the ridge
    ridge = min(RIDGES, key=lambda ridge: error(fitted(ridge, "fit"), "choose", every))
    change = fitted(ridge, "fit", "choose")
    is_better = error(change, "accept") < error(torch.zeros_like(change), "accept")
    if is_better:
        module.weight.data += change.to(module.weight.dtype)
    return is_better


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_the_walk_repairs_as_whole_models_by_hand(model_type: str, shape: str, tmp_path: Path) -> None:
    repairs_as_by_hand(model_type, shape, tmp_path)


def test_the_walk_repairs_in_the_basis_of_a_rotation(tmp_path: Path) -> None:
    matrix = torch.randn(64, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    components = torch.linalg.qr(matrix).Q.float()
    rotation = Rotation(components=components, variances=torch.ones(64, dtype=torch.float64))
    repairs_as_by_hand("llama", "width", tmp_path, rotation)


def repairs_as_by_hand(model_type: str, shape: str, tmp_path: Path, rotation: Rotation | None = None) -> None:
    teacher = make_model(model_type).float()
    source = save_checkpoint(tmp_path / "teacher", teacher)
    dims = dims_of_config(teacher.config.to_dict())
    plan = make_plan(
        dims, dims.with_shape(**SHAPES[shape]), random_importance(dims, seed=0), importance="random"
    )
    pruned = tmp_path / "pruned"
    pruned.mkdir()
    plan = plan if rotation is None else plan.rotated(rotation.save(pruned))
    slice_checkpoint(source, plan, pruned, dtype=torch.float32, rotation=rotation)
    student = load_model(pruned, dtype="float32", device="cpu")
    components = torch.eye(dims.hidden_size) if rotation is None else rotation.components
    expected = by_hand(load_model(source, dtype="float32", device="cpu"), student, plan, components)

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    how: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    with (
        Stream(source, WINDOWS, scratch / "a", **how) as ours,
        Stream(pruned, WINDOWS, scratch / "b", **how) as b,
    ):
        walk = Walk(
            original=ours,
            compressed=b,
            plan=plan,
            basis=None if rotation is None else rotation.kept(plan).float(),
            keep_mask=lambda _name: None,
            scratch=scratch,
            on_layer=lambda: None,
        )
        walk.run()
    assert {name: walk.layers[name].accepted for name in expected} == expected
    assert sum(expected.values()) > 4
    for name in filter(expected.get, walk.changed):
        path = walk.changed[name]
        with CheckpointReader(pruned) as reader:
            assert not torch.equal(reader.tensor(name), student.get_parameter(name))
        found, wanted = read_kept(path, name), student.get_parameter(name)
        assert (found - wanted).abs().max() <= 2e-3 * wanted.abs().max(), name
