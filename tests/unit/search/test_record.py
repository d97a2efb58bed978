"""Ranks and the front against their definitions, and predicted speed against a sum by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.report.results import Rates
from compressor.models.presets import PRESETS
from compressor.search.predict import predicted_speedup
from compressor.search.record import SPEED_MARGIN, MeasuredShape, rank

SMOLLM = PRESETS["smollm2-135m"].dims


def shape_of(number: int, speedup: float, loss: float) -> MeasuredShape:
    return MeasuredShape(
        name=str(number),
        shape=SMOLLM.with_shape(intermediate_size=64 * (number + 1)),
        num_parameters=number,
        predicted_speedup=speedup,
        perplexity_repaired=None,
        perplexity=math.exp(loss),
        mean_nll=loss,
    )


POINTS = st.lists(
    st.tuples(st.sampled_from([1.0, 1.4, 1.5, 1.52, 2.0]), st.sampled_from([2.0, 3.0, 4.0])),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(points=POINTS, reference=st.sampled_from([1.0, 1.5, 3.0]))
def test_the_winner_has_the_lowest_loss_of_those_that_are_fast_enough(
    points: list[tuple[float, float]], reference: float
) -> None:
    measured = [shape_of(number, *point) for number, point in enumerate(points)]
    ranked = rank(measured, default=measured[0].shape, reference_speedup=reference)
    fast = [point for point in points if point[0] >= reference * (1 - SPEED_MARGIN)]
    fast = fast or [point for point in points if point[0] == max(speed for speed, _ in points)]
    assert ranked[0].mean_nll == min(loss for _, loss in fast)
    assert sum(one.is_fast_enough for one in ranked) == len(fast)
    assert [one.rank for one in ranked] == list(range(1, len(points) + 1))
    assert [one.name for one in ranked if one.is_default] == ["0"]
    for one in ranked:
        better = [
            (speed, loss)
            for speed, loss in points
            if (speed > one.predicted_speedup and loss <= one.mean_nll)
            or (speed >= one.predicted_speedup and loss < one.mean_nll)
        ]
        assert one.is_on_pareto_front == (not better)


def test_a_slower_shape_does_not_win_by_its_loss() -> None:
    default, slower, worse = shape_of(0, 1.5, 3.0), shape_of(1, 1.46, 2.0), shape_of(2, 1.6, 3.5)
    ranked = rank([worse, slower, default], default=default.shape, reference_speedup=1.5)
    assert [one.name for one in ranked] == ["0", "2", "1"]
    assert ranked[2].is_on_pareto_front
    within = shape_of(1, 1.48, 2.0)
    assert rank([default, within], default=default.shape, reference_speedup=1.5)[0].name == "1"


@pytest.mark.parametrize("bandwidth", [1e9, 1e15], ids=["bound by memory", "bound by products"])
def test_the_predicted_speed_is_that_of_bytes_and_products_by_hand(bandwidth: float) -> None:
    student = SMOLLM.with_shape(num_hidden_layers=20, intermediate_size=1024)
    rates = Rates(bandwidth_bytes_per_s=bandwidth, matmul_ops_per_s={"fp32": 1e12}, device="a CPU")
    found = predicted_speedup(SMOLLM, student, cells=((16, 1, 2),), rates=rates, precision="fp32")

    def seconds(layers: int, neurons: int) -> float:
        matrices = layers * (576 * 576 * 2 + 576 * 192 * 2 + 3 * 576 * neurons)
        norms, embedding = 576 * (2 * layers + 1), 49152 * 576
        cache = 2 * 16 * layers * 2 * 192 * 4
        attention = 4 * layers * 576 * 8
        products = 2 * (16 * (2 * matrices + attention) + 2 * embedding)
        return max((4 * (matrices + norms + embedding) + cache) / bandwidth, products / 1e12)

    assert found == pytest.approx(seconds(30, 1536) / seconds(20, 1024), rel=1e-9)
