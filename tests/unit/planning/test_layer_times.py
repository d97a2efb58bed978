"""Layer times from tables by hand, and from models whose times are known by construction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compressor.core.errors import VerificationError
from compressor.models.dims import Dims, weight_bytes
from compressor.models.presets import PRESETS
from compressor.planning.layer_times import (
    Key,
    LayerTimes,
    SizeTimes,
    depths_to_measure,
    file_of,
    interpolate,
    keep_times,
    read_begun,
    read_times,
    sizes_to_measure,
    split_times,
)
from compressor.planning.outcome import rule_shapes

SMOLLM = PRESETS["smollm2-135m"].dims
KEY = Key(
    machine="a CPU, 2 cores",
    runtime="onnxruntime",
    versions={"onnxruntime": "1"},
    precision="fp32",
    model=SMOLLM,
    isl=128,
    osl=65,
    batch_size=1,
)


def linear_parameters(dims: Dims) -> int:
    """q, k, v, o and three MLP matrices of a layer."""
    heads = 2 * dims.num_attention_heads + 2 * dims.num_key_value_heads
    return dims.hidden_size * (heads * dims.head_dim + 3 * dims.intermediate_size)


@pytest.mark.parametrize(
    ("depths", "times", "expected"),
    [
        ((2, 6), (5.0, 13.0), (2.0, 1.0)),
        ((1, 2), (4.0, 3.5), (0.0, 4.0)),  # a deeper model cannot be faster: its layers take no time
        ((1, 2), (1.0, 3.0), (1.5, 0.0)),  # nor can what is outside take less than none
    ],
)
def test_two_depths_tell_a_layer_from_the_rest(
    depths: tuple[int, int], times: tuple[float, float], expected: tuple[float, float]
) -> None:
    assert split_times(depths, times) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("at", "expected"),
    [(10, 1.0), (15, 2.0), (20, 3.0), (30, 3.5), (40, 4.0), (50, 4.5), (5, 0.0), (0, 0.0)],
)
def test_values_lie_on_the_lines_between_the_points(at: float, expected: float) -> None:
    points = [(40.0, 4.0), (10.0, 0.5), (20.0, 3.0), (10.0, 1.5)]
    assert interpolate(points, at) == pytest.approx(expected)


def test_one_point_is_its_value_everywhere() -> None:
    assert interpolate([(3.0, 2.0), (3.0, 4.0)], 9.0) == 3.0


def table(layer: float, per_hidden: float, overhead: float, *, prefill: float = 10.0) -> LayerTimes:
    """What a machine would measure on which a layer costs so much per linear parameter."""
    sizes = []
    for hidden, intermediate in ((576, 1536), (432, 1152), (288, 384)):
        own = SMOLLM.with_shape(hidden_size=hidden, intermediate_size=intermediate)
        step = tuple(
            overhead + per_hidden * hidden + depth * layer * linear_parameters(own) for depth in (2, 8)
        )
        sizes.append(
            SizeTimes(
                hidden_size=hidden,
                intermediate_size=intermediate,
                depths=(2, 8),
                prefill_s=(prefill * step[0], prefill * step[1]),
                step_s=(step[0], step[1]),
            )
        )
    return LayerTimes(key=KEY, sizes=tuple(sizes))


@pytest.mark.parametrize(
    "shape", [{}, {"hidden_size": 432, "intermediate_size": 1216}, {"num_hidden_layers": 12}]
)
def test_a_models_time_is_its_layers_and_the_rest(shape: dict[str, int]) -> None:
    dims = SMOLLM.with_shape(**shape)
    times = table(1e-9, 1e-5, 2e-3)
    step = 2e-3 + 1e-5 * dims.hidden_size + dims.num_hidden_layers * 1e-9 * linear_parameters(dims)
    assert times.step_s(dims) == pytest.approx(step)
    assert times.prefill_s(dims) == pytest.approx(10 * step)
    assert times.latency_s(dims) == pytest.approx(10 * step + 64 * step)


def test_widths_to_measure_are_the_rules_own_and_span_them() -> None:
    sizes = sizes_to_measure(SMOLLM)
    widths = {(own.student.hidden_size, own.student.intermediate_size) for own in rule_shapes(SMOLLM)}
    chosen = [(dims.hidden_size, dims.intermediate_size) for dims in sizes]
    assert chosen[0] == (576, 1536)
    assert set(chosen[1:]) <= widths
    assert len(chosen) == len(set(chosen)) == 3
    smallest = min(linear_parameters(own.student) for own in rule_shapes(SMOLLM))
    assert linear_parameters(sizes[-1]) == smallest
    assert {dims.num_hidden_layers for dims in sizes} == {30}


@pytest.mark.parametrize("alias", ["smollm2-135m", "llama3.1-8b"])
@pytest.mark.parametrize("precision", ["fp32", "int4", "bf16+2:4"])
def test_depths_reach_beyond_caches_and_twice_as_far(alias: str, precision: str) -> None:
    dims = PRESETS[alias].dims
    first, second = depths_to_measure(dims, precision)
    assert 0 < first < second <= dims.num_hidden_layers
    dense = precision.partition("+")[0]
    shallow, deep = (
        weight_bytes(dims.with_shape(num_hidden_layers=depth), dense) for depth in (first, second)
    )
    assert shallow >= 1 << 27 or first == dims.num_hidden_layers // 2
    assert deep >= 2 * shallow or second == dims.num_hidden_layers


def test_a_model_of_one_layer_is_measured_beside_one_of_two() -> None:
    assert depths_to_measure(SMOLLM.with_shape(num_hidden_layers=1, vocab_size=300), "fp32") == (1, 2)


def test_times_are_read_for_their_own_key_alone(tmp_path: Path) -> None:
    times = table(1e-9, 1e-5, 2e-3)
    assert read_times(tmp_path / "none", KEY) is None
    keep_times(tmp_path / "kept", times)
    assert read_times(tmp_path / "kept", KEY) == times
    for change in ({"machine": "another"}, {"versions": {"onnxruntime": "2"}}, {"isl": 127}):
        assert read_times(tmp_path / "kept", KEY.model_copy(update=change)) is None
    again = LayerTimes(key=KEY.model_copy(update={"machine": "another"}), sizes=times.sizes)
    keep_times(tmp_path / "kept", again)
    assert len(list((tmp_path / "kept").iterdir())) == 1
    assert read_times(tmp_path / "kept", KEY) is None


def test_a_table_that_is_not_complete_is_only_to_be_continued(tmp_path: Path) -> None:
    times = table(1e-9, 1e-5, 2e-3)
    keep_times(tmp_path, LayerTimes(key=KEY, sizes=times.sizes[:1], is_complete=False))
    assert read_times(tmp_path, KEY) is None
    begun = read_begun(tmp_path, KEY)
    assert begun is not None
    assert begun.sizes == times.sizes[:1]


@pytest.mark.parametrize(
    ("field", "value"), [("step_s", [0.0, 1.0]), ("depths", [4, 4]), ("prefill_s", [1.0]), ("depths", [0, 2])]
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, field: str, value: object) -> None:
    keep_times(tmp_path, table(1e-9, 1e-5, 2e-3))
    file = file_of(tmp_path, KEY)
    document = json.loads(file.read_text())
    document["sizes"][1][field] = value
    file.write_text(json.dumps(document))
    with pytest.raises(VerificationError, match="layer times"):
        read_times(tmp_path, KEY)
