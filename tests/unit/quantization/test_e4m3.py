from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.quantization.e4m3 import E4M3, from_e4m3, scale_of, simulate, to_e4m3


def test_the_largest_value_becomes_448() -> None:
    values = torch.tensor([0.5, -3.0, 1.25])
    stored = to_e4m3(values, scale_of(values.abs().max()))
    assert stored.dtype == E4M3
    assert stored.float().tolist()[1] == -448.0


def test_values_beyond_the_range_saturate_instead_of_becoming_nan() -> None:
    stored = to_e4m3(torch.tensor([1e6, -1e6]), torch.tensor(1.0))
    assert stored.float().tolist() == [448.0, -448.0]


def test_halfway_values_round_to_the_even_neighbour() -> None:
    # Between 16 and 18 the step is 2: 17 lies halfway, 16 has the even mantissa; 19 goes up to 20.
    stored = to_e4m3(torch.tensor([17.0, 19.0]), torch.tensor(1.0))
    assert stored.float().tolist() == [16.0, 20.0]


def test_bfloat16_weights_are_divided_in_float32() -> None:
    weight = torch.linspace(-1, 1, 4097).to(torch.bfloat16)
    scale = scale_of(weight.abs().max())
    assert torch.equal(to_e4m3(weight, scale).float(), to_e4m3(weight.float(), scale).float())


@settings(deadline=None)  # other work on the machine must not fail it
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30))
def test_simulating_is_idempotent_and_within_half_a_step(numbers: list[float]) -> None:
    values = torch.tensor([*numbers, 1.0])
    scale = scale_of(values.abs().max())
    once = simulate(values, scale)
    assert torch.equal(simulate(once, scale), once)
    # 3 mantissa bits: half a step is 1/16 of the value, or half the smallest subnormal times the scale.
    assert ((once - values).abs() <= values.abs() / 16 + scale * 2.0**-10 * 1.001).all()
    assert torch.equal(from_e4m3(to_e4m3(values, scale), scale), once)


def test_zeros_stay_zeros() -> None:
    values = torch.tensor([0.0, 2.0, 0.0, -1.0])
    assert simulate(values, scale_of(values.abs().max()))[[0, 2]].tolist() == [0.0, 0.0]
