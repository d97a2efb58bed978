"""The constrained optimum: of a loss whose best choice is known, the masks find exactly that choice."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from compressor.core.errors import UsageError
from compressor.masks.applied import MaskValues
from compressor.masks.constraint import Constraint
from compressor.masks.gates import MaskKind
from compressor.masks.mask_set import MaskSet
from compressor.models.dims import Dims, dims_of_config
from tests.tiny_models import make_model

STEPS = 200


@pytest.fixture(scope="module")
def source() -> Dims:
    """Eight query heads in two groups, three layers."""
    model = make_model(hidden_size=24, intermediate_size=32, num_attention_heads=8, head_dim=4)
    return dims_of_config(model.config.to_dict())


def student_of(source: Dims) -> Dims:
    return source.with_shape(hidden_size=16, intermediate_size=20, num_attention_heads=4, num_hidden_layers=2)


def best_of(source: Dims) -> dict[str, torch.Tensor]:
    """The units that a loss will want to keep, drawn at random: the student's number of every row."""
    generator = np.random.default_rng(5)
    rows = {"hidden": (1, 24, 16), "intermediate": (3, 32, 20), "heads": (6, 4, 2), "layers": (1, 3, 2)}
    found = {}
    for name, (num_rows, num_units, num_kept) in rows.items():
        order = np.argsort(generator.random((num_rows, num_units)), axis=1)
        found[name] = torch.tensor(order < num_kept)
    per_layer = {name: found[name].view(3, -1) for name in ("intermediate", "heads")}
    return {"hidden": found["hidden"][0], **per_layer, "layers": found["layers"][0]}


def learned(masks: MaskSet, best: dict[str, torch.Tensor], *, rate: float) -> MaskSet:
    """Masks after so many steps on the loss mean(worth (1 - z)²) of every axis, without a trainer."""
    worth = {name: torch.where(mask, 10.0, 0.5) for name, mask in best.items()}
    optimizer = torch.optim.AdamW(
        [
            {"params": list(masks.gates.parameters()), "lr": rate},
            {"params": list(masks.constraints.parameters()), "lr": 1.0, "maximize": True},
        ],
        betas=(0.9, 0.95),
        weight_decay=0.0,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / 20) * max(0.1, (1 + math.cos(math.pi * step / STEPS)) / 2),
    )
    for step in range(STEPS):
        drawn = masks.drawn(step).named()
        loss = sum((worth[name] * (1 - drawn[name]).square()).sum() / worth[name].numel() for name in worth)
        penalty = masks.penalty(progress=step / STEPS, warmth=min(1.0, step / 40))
        optimizer.zero_grad()
        (loss + penalty).backward()
        optimizer.step()
        schedule.step()
        masks.after_step_()
    return masks


def indices(mask: torch.Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero()[:, 0].tolist())


@pytest.mark.parametrize(("kind", "rate"), [("hard-concrete", 1.0), ("deterministic", 0.05)])
def test_the_most_valuable_units_of_every_row_stay(source: Dims, kind: MaskKind, rate: float) -> None:
    best = best_of(source)
    masks = learned(MaskSet(source, student_of(source), kind=kind, seed=0), best, rate=rate)
    assert all(miss < 1.5 for miss in masks.largest_misses(progress=1.0).values())
    plan = masks.plan("learned")
    assert plan.student == student_of(source)
    assert plan.layers == indices(best["layers"])
    assert plan.kept["hidden"] == (indices(best["hidden"]),)
    right = [
        len(set(plan.kept[name][position]) & set(indices(best[name][layer])))
        for name in ("heads", "intermediate")
        for position, layer in enumerate(plan.layers)
    ]
    assert sum(right) >= 2 * (4 + 20) - 2  # random masks may take a head or a neuron for its neighbour
    final = masks.final(plan).named()
    assert {name: int((values != 0).sum(-1).max()) for name, values in final.items()} == {
        "hidden": 16,
        "intermediate": 20,
        "heads": 4,
        "layers": 2,
    }


def test_the_penalty_is_both_multipliers_times_the_miss_of_every_row() -> None:
    constraint = Constraint(3, 0.4)
    with torch.no_grad():
        constraint.linear.copy_(torch.tensor([1.0, -2.0, 0.5]))
        constraint.quadratic.copy_(torch.tensor([0.0, 3.0, 4.0]))
    counts = torch.tensor([[1.0, 0.2], [0.5, 0.1], [0.9, 0.9]])
    found = constraint(counts, 0.5)
    misses = [0.4 - 0.2, 0.7 - 0.2, 0.1 - 0.2]
    expected = misses[0] - 2 * misses[1] + 3 * misses[1] ** 2 + 0.5 * misses[2] + 4 * misses[2] ** 2
    assert found.item() == pytest.approx(expected / 3)
    found.backward()
    assert constraint.linear.grad is not None
    assert constraint.linear.grad.tolist() == pytest.approx([miss / 3 for miss in misses])


def test_draws_depend_on_seed_and_step_alone(source: Dims) -> None:
    def drawn(seed: int, step: int) -> torch.Tensor:
        masks = MaskSet(source, student_of(source), kind="hard-concrete", seed=seed)
        with torch.no_grad():
            masks.gates["intermediate"].get_parameter("raw").zero_()  # the same start, other noise
        return masks.drawn(step).units["intermediate"].detach()

    with torch.random.fork_rng():
        first = drawn(3, 7)
        torch.manual_seed(99)
        assert torch.equal(drawn(3, 7), first)
    assert not torch.equal(drawn(3, 8), first)
    assert not torch.equal(drawn(4, 7), first)


def test_measuring_on_the_way_zeroes_as_many_as_are_expected_to_be(source: Dims) -> None:
    masks = MaskSet(source, source.with_shape(hidden_size=12), kind="hard-concrete", seed=0)
    raw = masks.gates["hidden"].get_parameter("raw")
    with torch.no_grad():
        raw.copy_(torch.tensor([-4.6] * 9 + [4.6] * 15)[None])
    found = masks.expected(progress=0.0)
    assert isinstance(found, MaskValues)
    assert set(found.named()) == {"hidden"}
    assert (found.units["hidden"] != 0).tolist() == [False] * 9 + [True] * 15


def test_nothing_to_remove_is_refused(source: Dims) -> None:
    with pytest.raises(UsageError, match="nothing for masks to remove"):
        MaskSet(source, source, kind="hard-concrete", seed=0)
