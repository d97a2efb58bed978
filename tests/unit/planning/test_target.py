from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.core.errors import UnsupportedError, UsageError
from compressor.models.dims import Dims, num_parameters
from compressor.models.presets import PRESETS
from compressor.planning.target import (
    INTERMEDIATE_MULTIPLE,
    LARGE_HIDDEN_SIZE,
    TOLERANCE,
    parse_count,
    resolve_shape,
    resolve_target,
)

LLAMA = PRESETS["llama3.1-8b"].dims
# As Llama-3.1-70B.
LLAMA_70B = LLAMA.with_shape(
    hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64
)
SMOLLM = PRESETS["smollm2-135m"].dims


@pytest.mark.parametrize(
    ("teacher", "target", "count", "intermediate_size", "num_layers"),
    [
        ("llama3.1-8b", "4b", 4_512_746_496, 9216, 32),
        ("llama3.1-8b", "4B", 4_512_746_496, 9216, 32),
        ("llama3.1-8b", "4b-width", 4_512_746_496, 9216, 32),
        ("llama3.1-8b", "4b-depth", 4_540_469_248, 14336, 16),
        ("mistral-nemo-12b", "8b", 8_414_105_600, 11520, 40),
        ("llama2-7b", "1.3b", 1_345_423_360, 5504, 24),
        ("llama2-7b", "2.7b", 2_701_560_320, 6912, 32),
    ],
)
def test_published_shape_comes_before_the_number(
    teacher: str, target: str, count: int, intermediate_size: int, num_layers: int
) -> None:
    resolved = resolve_target(PRESETS[teacher].dims, target)

    assert num_parameters(resolved.student) == count
    assert resolved.student.intermediate_size == intermediate_size
    assert resolved.student.num_hidden_layers == num_layers
    assert resolved.student.head_dim == 128
    assert resolved.published in PRESETS
    assert "published shape" in resolved.rule


def test_other_teachers_do_not_get_the_published_shape() -> None:
    teacher = LLAMA.with_shape(vocab_size=128_000)

    resolved = resolve_target(teacher, "4b")

    assert resolved.published is None
    assert abs(num_parameters(resolved.student) / 4e9 - 1) <= TOLERANCE


@given(fraction=st.floats(0.35, 0.99), alias=st.sampled_from(["llama3.1-8b", "llama2-7b", "smollm2-135m"]))
def test_any_size_is_met_within_the_tolerance_on_the_grid(fraction: float, alias: str) -> None:
    teacher = PRESETS[alias].dims
    wanted = round(num_parameters(teacher) * fraction)

    resolved = resolve_target(teacher, str(wanted))

    student = resolved.student
    assert abs(num_parameters(student) - wanted) <= TOLERANCE * wanted
    assert resolved.requested_parameters == wanted
    assert_on_grid(teacher, student)
    assert student.num_attention_heads == teacher.num_attention_heads
    assert student.head_dim == teacher.head_dim


def assert_on_grid(teacher: Dims, student: Dims) -> None:
    if student.intermediate_size != teacher.intermediate_size:
        assert student.intermediate_size % INTERMEDIATE_MULTIPLE == 0
    if student.hidden_size != teacher.hidden_size:
        assert student.hidden_size % (64 if student.hidden_size >= LARGE_HIDDEN_SIZE else 16) == 0
        assert student.hidden_size % student.num_attention_heads == 0
    assert student.hidden_size <= teacher.hidden_size
    assert student.intermediate_size <= teacher.intermediate_size


@pytest.mark.parametrize("target", ["50%", "60%", "80%", "95%"])
def test_layers_and_neurons_go_before_hidden_channels(target: str) -> None:
    for teacher in (LLAMA, SMOLLM):
        student = resolve_target(teacher, target).student
        assert student.hidden_size == teacher.hidden_size
        assert student.intermediate_size < teacher.intermediate_size
        assert student.num_hidden_layers < teacher.num_hidden_layers
    assert resolve_target(SMOLLM, "30%").student.hidden_size < SMOLLM.hidden_size


@pytest.mark.parametrize("target", ["80m", "60%", "80%"])
def test_no_other_shape_of_the_hidden_size_is_cheaper(target: str) -> None:
    """By brute force over depth and neurons: four times as dear to halve the layers as the neurons."""
    resolved = resolve_target(SMOLLM, target)
    wanted = resolved.requested_parameters
    assert wanted is not None
    prices = {}
    for layers in range(18, SMOLLM.num_hidden_layers + 1):
        sizes = range(640, SMOLLM.intermediate_size + 1, 64)
        shapes = [SMOLLM.with_shape(num_hidden_layers=layers, intermediate_size=size) for size in sizes]
        shape = min(shapes, key=lambda dims: abs(num_parameters(dims) - wanted))
        if abs(num_parameters(shape) - wanted) <= TOLERANCE * wanted:
            left = shape.intermediate_size / SMOLLM.intermediate_size
            prices[shape] = math.log(left) ** 2 + 4 * math.log(layers / SMOLLM.num_hidden_layers) ** 2
    assert resolved.student == min(prices, key=prices.__getitem__)


def test_percentage_means_of_all_parameters() -> None:
    resolved = resolve_target(SMOLLM, "60%")

    assert resolved.requested_parameters == round(0.6 * 134_515_008)
    assert "asked 80,709,005" in resolved.rule
    assert "layers 30 to 23" in resolved.rule
    narrow = resolve_target(SMOLLM, "30%")
    assert "multiples of 144: of 16, and of its 9 query heads" in narrow.rule


@pytest.mark.parametrize("target", ["", "four", "4bb", "-4b", "4 b", "1e9", "%", "nan", "4b-wid"])
def test_target_that_is_no_size(target: str) -> None:
    with pytest.raises(UsageError, match="neither a size nor a published shape") as caught:
        resolve_target(LLAMA, target)
    assert "4b-depth" in str(caught.value.expected)
    assert target != "4b-wid" or "4b-width" in str(caught.value.hint)


@pytest.mark.parametrize("target", ["9b", "100%", "150%", str(num_parameters(LLAMA))])
def test_target_not_below_the_teacher(target: str) -> None:
    with pytest.raises(UsageError, match="not below the teacher"):
        resolve_target(LLAMA, target)


@pytest.mark.parametrize("target", ["0", "0%"])
def test_target_of_nothing(target: str) -> None:
    with pytest.raises(UsageError, match="leaves nothing") as caught:
        resolve_target(LLAMA, target)
    assert "larger" in str(caught.value.hint)


@pytest.mark.parametrize("target", ["2b", "10m", "1%"])
def test_target_too_small_to_reach(target: str) -> None:
    """The size that the hint puts between can be reached from the model, and is above the target."""
    with pytest.raises(UsageError, match="too small to reach") as caught:
        resolve_target(LLAMA_70B, target)
    [between] = re.findall(r"several steps, such as --target (\S+),", str(caught.value.hint))
    if target != "10m":  # needs more than two
        assert resolve_target(LLAMA_70B, between).student.num_hidden_layers
    assert parse_count(between, whole=1) > parse_count(target, whole=num_parameters(LLAMA_70B))


@pytest.mark.parametrize(("target", "share", "unit"), [("60", "60%", "60b"), ("0.6", "60%", "0.6b")])
def test_a_unit_that_was_forgotten(target: str, share: str, unit: str) -> None:
    with pytest.raises(UsageError, match="below a thousandth") as caught:
        resolve_target(LLAMA, target)
    assert share in str(caught.value.hint)
    assert unit in str(caught.value.hint)
    assert resolve_target(LLAMA, share).requested_parameters == round(0.6 * num_parameters(LLAMA))


def test_a_small_number_is_one_for_a_small_model() -> None:
    small = SMOLLM.with_shape(num_hidden_layers=6, hidden_size=64, intermediate_size=128, vocab_size=300)
    small = replace(small, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    wanted = num_parameters(small) * 6 // 10
    assert wanted < 200_000
    assert abs(num_parameters(resolve_target(small, str(wanted)).student) / wanted - 1) <= TOLERANCE


def test_another_models_published_shape_says_whose_it_is() -> None:
    with pytest.raises(UsageError, match=r"found: a published shape of llama3\.1-8b"):
        resolve_target(SMOLLM, "4b-width")


@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2, 6])
@pytest.mark.parametrize("vocab_size", [300, 49152])
def test_the_target_that_a_refusal_names_is_accepted(rotates: bool, num_layers: int, vocab_size: int) -> None:
    """Few shapes lie on the grid of a small model; the teacher's own is not one of them."""
    num_named = 0
    for hidden_size, intermediate_size, tied in itertools.product((64, 192, 576), (64, 1536), (True, False)):
        teacher = replace(
            SMOLLM,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=num_layers,
            vocab_size=vocab_size,
            tie_word_embeddings=tied,
        )
        for percent in (98, 95, 85, 70, 60):
            try:
                resolve_target(teacher, f"{percent}%", rotates=rotates)
            except UsageError as error:
                if named := re.search(r"use --target (\d+)", str(error.hint)):
                    num_named += 1
                    found = num_parameters(resolve_target(teacher, named[1], rotates=rotates).student)
                    assert abs(found / int(named[1]) - 1) <= TOLERANCE
                    assert int(named[1]) < num_parameters(teacher)
    assert num_named


def test_a_model_without_a_smaller_shape_on_the_grid_is_told_so() -> None:
    smallest = SMOLLM.with_shape(num_hidden_layers=1, hidden_size=48, intermediate_size=64, vocab_size=300)
    with pytest.raises(UsageError, match="no smaller shape of this model") as caught:
        resolve_target(smallest, "90%")
    assert "--shape" in str(caught.value.hint)


def test_explicit_shape() -> None:
    student = resolve_shape(SMOLLM, {"hidden_size": 432, "intermediate_size": 1024}).student

    assert (student.hidden_size, student.intermediate_size, student.head_dim) == (432, 1024, 64)


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ({"hidden_sz": 432}, UsageError, "unknown dimension 'hidden_sz'[^$]*did you mean hidden_size"),
        *(({"hidden_size": size}, UsageError, "hidden_size is out of range") for size in (0, -16, 577)),
        ({"hidden_size": 448}, UnsupportedError, "divisible by the number of query heads"),
        ({"num_attention_heads": 8, "hidden_size": 512}, UnsupportedError, "fill the key/value groups"),
    ],
)
def test_explicit_shapes_that_are_refused(
    shape: dict[str, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        resolve_shape(SMOLLM, shape)


def test_key_value_heads_go_with_their_query_heads() -> None:
    shape = {"num_attention_heads": 6, "num_key_value_heads": 2}
    student = resolve_shape(SMOLLM, shape).student
    assert (student.num_attention_heads, student.num_key_value_heads) == (6, 2)
    assert resolve_shape(SMOLLM, {**shape, "num_attention_heads": 4, "hidden_size": 512}).student
    with pytest.raises(UsageError, match="at most 3 query heads with 1 key/value heads"):
        resolve_shape(SMOLLM, {"num_key_value_heads": 1})
    with pytest.raises(UnsupportedError, match="fill the key/value groups"):
        resolve_shape(SMOLLM, {**shape, "num_attention_heads": 5})
