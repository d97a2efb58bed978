from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.core.errors import VerificationError
from exporters.verification.comparison import combine, compare_logits
from exporters.verification.tolerance import TOLERANCES, Tolerance, check_tolerance


def test_equal_logits_differ_in_nothing() -> None:
    logits = torch.randn(130, 17)
    compared = compare_logits(logits, logits.clone())
    assert (compared.max_abs, compared.mean_abs, compared.kl, compared.max_relative) == (0, 0, 0, 0)
    assert compared.top1_agreement == 1.0
    assert compared.num_positions == 130


def test_figures_by_hand() -> None:
    reference = torch.tensor([[0.0, math.log(3.0)], [2.0, 0.0]])
    candidate = torch.tensor([[0.0, 0.0], [2.0, 0.5]])
    compared = compare_logits(reference, candidate)
    assert compared.max_abs == pytest.approx(math.log(3.0))
    assert compared.mean_abs == pytest.approx((math.log(3.0) + 0.5) / 4)
    assert compared.max_relative == pytest.approx(math.log(3.0) / 2)
    assert compared.top1_agreement == 0.5  # in the first row both logits tie, and the first one is taken
    first = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    p, q = 1 / (1 + math.exp(-2.0)), 1 / (1 + math.exp(-1.5))
    second = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert compared.kl == pytest.approx((first + second) / 2)


@settings(deadline=None)  # other work on the machine must not fail it
@given(st.integers(0, 2**31), st.integers(1, 200))
def test_parts_combine_to_the_whole(seed: int, cut: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    reference, noise = (torch.randn(201, 7, generator=generator) for _ in range(2))
    candidate = reference + 0.1 * noise
    whole = compare_logits(reference, candidate)
    parts = combine(
        compare_logits(reference[part], candidate[part]) for part in (slice(0, cut), slice(cut, None))
    )
    assert vars(parts.figures()) == pytest.approx(vars(whole.figures()), rel=1e-5)


def test_adding_a_constant_changes_logits_but_not_the_distribution() -> None:
    reference = torch.randn(20, 9)
    compared = compare_logits(reference, reference + 1.0)
    assert compared.max_abs == pytest.approx(1.0, rel=1e-5)
    assert compared.kl < 1e-12


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_is_refused(value: float) -> None:
    reference = torch.zeros(3, 4)
    candidate = reference.clone()
    candidate[2, 1] = value
    with pytest.raises(VerificationError, match="candidate"):
        compare_logits(reference, candidate)


def test_another_shape_is_refused() -> None:
    with pytest.raises(VerificationError, match="shape"):
        compare_logits(torch.zeros(3, 4), torch.zeros(3, 5))


def test_tolerances_of_the_issue() -> None:
    assert TOLERANCES["fp32"] == Tolerance(max_relative=1e-3, min_top1=0.999, min_positions=2000)
    assert TOLERANCES["int4"] is None


def test_each_bound_refuses() -> None:
    reference = torch.randn(2048, 5)
    tolerance = Tolerance(max_relative=1e-3, min_top1=0.999)
    check_tolerance(compare_logits(reference, reference), tolerance, where="onnx")
    with pytest.raises(VerificationError, match="too few positions"):
        check_tolerance(compare_logits(reference[:1999], reference[:1999]), tolerance, where="onnx")
    far = reference.clone()
    far[0, 0] += 0.01 * reference.abs().max()
    with pytest.raises(VerificationError, match="logits differ"):
        check_tolerance(compare_logits(reference, far), tolerance, where="onnx")
    # Three of 2048 positions with another winner, by differences far below the other bound.
    close = reference.clone()
    winners = close[:3].topk(2).indices
    for row in range(3):
        reference[row, winners[row, 1]] = reference[row, winners[row, 0]] - 1e-6
        close[row, winners[row, 1]] = reference[row, winners[row, 0]] + 1e-6
    with pytest.raises(VerificationError, match="most likely tokens"):
        check_tolerance(compare_logits(reference, close), tolerance, where="onnx")
