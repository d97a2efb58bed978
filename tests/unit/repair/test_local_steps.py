"""Local gradient steps against a plain training loop, and what must hold whatever they find."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from compressor.models.adapter import ModelAdapter
from compressor.models.sparse.masks import keep_mask
from compressor.repair.local_steps import Examples, Matrix, Part, error_of, part_of, take_steps
from tests.tiny_models import MODEL_TYPES, make_model

WINDOWS, TOKENS, CHANNELS, INNER = 8, 16, 12, 20
USES: dict[Any, list[int]] = {"fit": [0, 1, 2, 4, 5, 6], "choose": [3], "accept": [7]}
STEPS = 16


class GatedMLP(nn.Module):
    """As small as can be."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        shapes = {"gate": (INNER, CHANNELS), "up": (INNER, CHANNELS), "down": (CHANNELS, INNER)}
        generator = torch.Generator().manual_seed(seed)
        for name, (rows, columns) in shapes.items():
            linear = nn.Linear(columns, rows, bias=name == "down")
            with torch.no_grad():
                for parameter in linear.parameters():
                    parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
            self.add_module(name, linear)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.silu(self.gate(hidden_states)) * self.up(hidden_states)
        output: torch.Tensor = self.down(hidden)
        return output


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def examples(targets: torch.Tensor | None = None) -> Examples:
    """Outputs of another MLP; some tokens count far more than others."""
    inputs = drawn(WINDOWS, TOKENS, CHANNELS, seed=1)
    with torch.no_grad():
        wanted = GatedMLP(seed=7)(inputs) if targets is None else targets
    weights = drawn(WINDOWS, TOKENS, 1, seed=2).exp()
    return Examples(inputs=inputs, targets=wanted, weights=weights, uses=USES)


def student(*, sparse: bool) -> tuple[GatedMLP, dict[str, Matrix]]:
    """Near the one that it is to become."""
    module = copy.deepcopy(GatedMLP(seed=7))
    matrices = {}
    for name in ("gate", "up", "down"):
        weight = module.get_submodule(name).weight.data
        weight += 0.1 * drawn(*weight.shape, seed=3)
        mask = keep_mask(weight.abs()) if sparse else None
        weight.mul_(1 if mask is None else mask)
        matrices[f"{name}.weight"] = Matrix(weight=weight, keep_mask=mask)
    return module, matrices


def trained_by_hand(
    module: GatedMLP, matrices: dict[str, Matrix], given: Examples
) -> dict[str, torch.Tensor]:
    """A loop over a copy of the module: Adam, a rate that falls to 0, the best of eight moments."""
    module = copy.deepcopy(module)
    parameters = {name: module.get_parameter(name) for name in matrices}
    rates = {
        name: 2e-3 * parameter.detach().pow(2).mean().sqrt().item() for name, parameter in parameters.items()
    }
    optimizer = torch.optim.Adam(
        [{"params": [p], "lr": rates[n]} for n, p in parameters.items()], betas=(0.9, 0.95)
    )

    def errors(windows: list[int]) -> torch.Tensor:
        return (module(given.inputs[windows]) - given.targets[windows]) * given.weights[windows]

    def snapshot() -> tuple[float, dict[str, torch.Tensor]]:
        with torch.no_grad():
            error = errors(USES["choose"]).double().pow(2).sum().item()
        return error, {name: parameter.detach().clone() for name, parameter in parameters.items()}

    moments = [snapshot()]
    for step in range(STEPS):
        for group, name in zip(optimizer.param_groups, parameters, strict=True):
            group["lr"] = rates[name] * (1 - step / STEPS)
        module.zero_grad()
        errors(USES["fit"]).pow(2).mean().backward()
        for name, parameter in parameters.items():
            if (mask := matrices[name].keep_mask) is not None and parameter.grad is not None:
                parameter.grad.mul_(mask)
        optimizer.step()
        if (step + 1) % (STEPS // 8) == 0:
            moments.append(snapshot())
    return min(moments, key=lambda moment: moment[0])[1]


@pytest.mark.parametrize("sparse", [False, True])
def test_steps_are_those_of_a_plain_loop(sparse: bool) -> None:
    given = examples()
    module, matrices = student(sparse=sparse)
    state = copy.deepcopy(module.state_dict())
    found = take_steps(Part(module=module), matrices, given, STEPS)
    assert found.accepted
    assert found.error_ratio is not None
    assert found.error_ratio < 1
    for name, expected in trained_by_hand(module, matrices, given).items():
        torch.testing.assert_close(found.weights[name], expected, rtol=1e-4, atol=1e-6)
        assert not torch.equal(found.weights[name], matrices[name].weight)
        if (mask := matrices[name].keep_mask) is not None:
            assert not found.weights[name][~mask].any()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_what_does_not_help_on_held_out_windows_is_left() -> None:
    """Targets that are met on held-out windows, and elsewhere are others."""
    module, matrices = student(sparse=False)
    with torch.no_grad():
        wanted = module(examples().inputs)
    wanted[USES["fit"]] += drawn(len(USES["fit"]), TOKENS, CHANNELS, seed=4)
    found = take_steps(Part(module=module), matrices, examples(wanted), STEPS)
    assert not found.accepted
    assert found.error_ratio is None  # nothing was missing
    wanted[USES["accept"]] += 1e-3
    found = take_steps(Part(module=module), matrices, examples(wanted), STEPS)
    assert not found.accepted
    for name, matrix in matrices.items():
        assert torch.equal(found.weights[name], matrix.weight)


def test_errors_that_are_not_finite_are_never_accepted() -> None:
    module, matrices = student(sparse=False)
    given = examples()
    given.targets[USES["fit"][0]] = float("nan")
    found = take_steps(Part(module=module), matrices, given, STEPS)
    assert not found.accepted
    assert all(tensor.isfinite().all() for tensor in found.weights.values())


def test_values_as_they_are_stored_decide() -> None:
    """In 16 bits, the error is that of the rounded weights."""
    module, matrices = student(sparse=True)
    module = module.bfloat16()
    matrices = {
        name: Matrix(weight=matrix.weight.bfloat16(), keep_mask=matrix.keep_mask)
        for name, matrix in matrices.items()
    }
    part, given = Part(module=module), examples()
    found = take_steps(part, matrices, given, STEPS)
    assert {tensor.dtype for tensor in found.weights.values()} == {torch.bfloat16}
    before = {name: matrix.weight for name, matrix in matrices.items()}
    errors = [error_of(part, matrices, weights, given, "accept") for weights in (found.weights, before)]
    assert found.error_ratio == pytest.approx(errors[0] / errors[1])


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("name", ["self_attn", "mlp"])
def test_a_part_computes_what_it_does_in_its_model(model_type: str, name: str) -> None:
    model = make_model(model_type)
    layer = ModelAdapter(model).layers[1]
    ids = torch.arange(20)[None]
    norm = layer.part(layer.family.module({"self_attn": "attention_norm", "mlp": "mlp_norm"}[name]))
    seen: list[torch.Tensor] = []
    handles = [
        norm.register_forward_hook(lambda _m, _args, output: seen.append(output)),
        layer.part(name).register_forward_hook(
            lambda _m, _args, output: seen.append(output[0] if isinstance(output, tuple) else output)
        ),
    ]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    inputs, expected = seen
    with torch.no_grad():
        part = part_of(layer.part(name), lambda: model(ids))
        torch.testing.assert_close(part({}, inputs), expected)
        weight = layer.part(name).get_parameter(f"{'o' if name == 'self_attn' else 'down'}_proj.weight")
        key = f"{'o' if name == 'self_attn' else 'down'}_proj.weight"
        torch.testing.assert_close(part({key: 2 * weight}, inputs), 2 * expected, rtol=1e-4, atol=1e-4)
    assert not layer.part(name)._forward_pre_hooks


def test_no_hook_is_left_when_the_layer_fails() -> None:
    module = GatedMLP(seed=0)

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        part_of(module, fail)
    assert not module._forward_pre_hooks
