"""Masks against what their definition gives: Monte Carlo, scipy's distribution, gradients by differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from compressor.masks.gates import NARROWEST, WIDEST, Deterministic, HardConcrete, make_gates

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
LN_A = np.array([-3.0, -1.2, 0.0, 0.7, 2.5])
NUM_DRAWS = 200_000


def draws(ln_a: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Hard-concrete values in float64, as the paper writes them."""
    s = expit((logit(u) + ln_a) / BETA)
    return np.clip(s * (ZETA - GAMMA) + GAMMA, 0, 1)


def stays(ln_a: np.ndarray, u: np.ndarray) -> np.ndarray:
    return (draws(ln_a, u) > 0).mean(0)


def test_the_expected_count_and_its_gradient_match_monte_carlo() -> None:
    u = np.random.default_rng(0).uniform(size=(NUM_DRAWS, 1))
    gates = HardConcrete(torch.tensor(LN_A, dtype=torch.float64)[None])
    count = gates.count(0.0)
    count.sum().backward()
    assert gates.raw.grad is not None
    error = 4 * np.sqrt(0.25 / NUM_DRAWS)
    np.testing.assert_allclose(count.detach().numpy()[0], stays(LN_A, u), atol=error)
    # With common random numbers the difference of two shares has far less noise than either.
    step = 0.2
    slope = (stays(LN_A + step, u) - stays(LN_A - step, u)) / (2 * step)
    np.testing.assert_allclose(gates.raw.grad.numpy()[0], slope, atol=4 * np.sqrt(0.1 / NUM_DRAWS) / step)


def test_draws_and_their_gradient_are_those_of_the_definition() -> None:
    u = np.random.default_rng(1).uniform(size=(1000, len(LN_A)))
    gates = HardConcrete(torch.tensor(np.broadcast_to(LN_A, u.shape).copy()))
    drawn = gates.drawn(torch.tensor(u))
    np.testing.assert_allclose(drawn.detach().numpy(), draws(LN_A, u), atol=1e-12)
    assert 0 < (drawn == 0).double().mean() < 1
    assert 0 < (drawn == 1).double().mean() < 1
    drawn.sum().backward()
    assert gates.raw.grad is not None
    step = 1e-6
    slope = (draws(LN_A + step, u) - draws(LN_A - step, u)) / (2 * step)
    np.testing.assert_allclose(gates.raw.grad.numpy(), slope, atol=1e-5)


def test_masks_begin_near_one_and_stay_where_they_can_move() -> None:
    gates = make_gates("hard-concrete", (2, 50), torch.Generator().manual_seed(0))
    assert gates.count(0.0).min() > 0.95
    with torch.no_grad():
        gates.raw.fill_(-50)
    gates.after_step_()
    assert gates.raw.min().item() == pytest.approx(math.log(0.01))
    np.testing.assert_allclose(gates.settled().numpy(), expit(0.8 * math.log(0.01) / BETA), rtol=1e-5)


def test_the_deterministic_count_becomes_the_number_of_masks_that_are_not_zero() -> None:
    gates = Deterministic(torch.tensor([[1.0, -0.7, 0.3, 0.0, 1e-4]]))
    assert torch.equal(gates.drawn(torch.rand(1, 5)), gates.raw)
    square = np.array([1.0, 0.49, 0.09, 0.0, 1e-8])
    for progress, width in ((0.0, WIDEST), (0.5, math.sqrt(WIDEST * NARROWEST)), (1.0, NARROWEST)):
        found = gates.count(progress)[0].detach().numpy()
        np.testing.assert_allclose(found, square / (square + width), rtol=1e-5)
    assert gates.count(1.0).sum().item() == pytest.approx(3, abs=0.02)
    assert gates.scores().argsort(descending=True)[0].tolist() == [0, 1, 2, 4, 3]
