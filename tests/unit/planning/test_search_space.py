"""The list of a search against nested loops over every shape, counted by hand as the model classes do."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from compressor.core.errors import UnsupportedError
from compressor.models.dims import Dims, dims_of_config, num_parameters
from compressor.models.presets import PRESETS
from compressor.planning.search_plan import choose
from compressor.planning.search_space import Deployment, enumerate_shapes, refusal
from compressor.planning.target import resolve_target
from compressor.recipe.recipe import load_recipe
from exporters.registry import check_exports

SMOLLM = PRESETS["smollm2-135m"].dims
SIZES = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
TINY = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 331,
}


def tiny_config(model_type: str, **shape: int) -> Any:
    return AutoConfig.for_model(
        model_type, **{**TINY, **shape, "tie_word_embeddings": True, "pad_token_id": 0}
    )


def counted(layers: int, heads: int, hidden: int, neurons: int) -> int:
    """Parameters by hand: tied embedding, and per layer two norms, attention and a gated MLP."""
    attention = 2 * hidden * 16 * heads + 2 * hidden * 16 * 2
    return 331 * hidden + hidden + layers * (2 * hidden + attention + 3 * hidden * neurons)


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (3, 4, 64, 192), (2, 3, 48, 112), (3, 2, 16, 192)])
def test_the_count_by_hand_is_that_of_the_classes(model_type: str, shape: tuple[int, ...]) -> None:
    sizes = {**dict(zip(SIZES, shape, strict=True)), "num_key_value_heads": 1}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(model_type, **sizes))
    layers, _, hidden, _ = shape
    second_group = layers * 2 * hidden * 16  # one head would not fill two groups
    assert sum(part.numel() for part in model.parameters()) == counted(*shape) - second_group


def brute_force(
    model_type: str, wanted: int, *, tp: int = 1, pp: int = 1, group: int = 1
) -> tuple[set[tuple[int, ...]], int]:
    """Every deployable shape within 5 %, and the number of the others, by nested loops."""
    kept, left_out = set(), 0
    for layers in range(1, 4):
        for heads in range(1, 5):
            for hidden in range(16, 65, 16):
                for neurons in range(16, 193, 16):
                    if abs(counted(layers, heads, hidden, neurons) - wanted) > 0.05 * wanted:
                        continue
                    deployable = (
                        (layers, heads, hidden, neurons) != (3, 4, 64, 192)
                        and layers >= max(1, int(3 * 0.25), pp)
                        and hidden >= 16
                        and neurons >= 48
                        and neurons % 64 == 0
                        and heads % 2 == 0
                        and heads % tp == 0
                        and neurons % tp == 0
                        and (model_type != "llama" or hidden % heads == 0)
                        and hidden % group == 0
                        and neurons // tp % group == 0
                        and heads * 16 // tp % group == 0
                    )
                    if deployable:
                        kept.add((layers, heads, hidden, neurons))
                    else:
                        left_out += 1
    return kept, left_out


def sizes_of(shape: Dims) -> tuple[int, ...]:
    return tuple(getattr(shape, name) for name in SIZES)


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
@pytest.mark.parametrize("fraction", [0.4, 0.7, 0.97])
def test_the_list_equals_brute_force(model_type: str, fraction: float) -> None:
    teacher = dims_of_config(tiny_config(model_type).to_dict())
    wanted = round(fraction * counted(3, 4, 64, 192))
    space = enumerate_shapes(teacher, wanted, Deployment())
    kept, left_out = brute_force(model_type, wanted)
    assert kept
    assert len(space.shapes) == len(kept)
    assert set(map(sizes_of, space.shapes)) == kept
    assert sum(found.num_shapes for found in space.excluded) == left_out
    assert all(found.num_shapes for found in space.excluded)


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ({"export.tensorrt_llm.tp_size": 4}, {"tp": 4}),
        ({"export.tensorrt_llm.pp_size": 3}, {"pp": 3}),
        ({"sparsify.pattern": "2:4", "export.tensorrt_llm.tp_size": 2}, {"tp": 2, "group": 16}),
        ({"sparsify.pattern": "8:32"}, {"group": 32}),
        ({"quantize.fp8": True, "export.tensorrt_llm.tp_size": 2}, {"tp": 2, "group": 16}),
        ({"export.formats": "onnx", "export.tensorrt_llm.tp_size": 4}, {}),
    ],
    ids=str,
)
def test_what_exports_demand_leaves_shapes_out(given: dict[str, Any], limits: dict[str, int]) -> None:
    teacher = dims_of_config(tiny_config("llama").to_dict())
    wanted = round(0.6 * num_parameters(teacher))
    recipe = load_recipe(None, {"model": "tiny", **given})
    space = enumerate_shapes(teacher, wanted, Deployment.of(recipe, teacher))
    kept, left_out = brute_force("llama", wanted, **limits)
    assert set(map(sizes_of, space.shapes)) == kept
    assert sum(found.num_shapes for found in space.excluded) == left_out


def test_the_exporters_agree_about_every_shape() -> None:
    """What the list leaves out for the ranks of an engine is what the exporter itself refuses."""
    config = tiny_config("llama").to_dict()
    teacher = dims_of_config(config)
    given = {"export.tensorrt_llm.tp_size": 4, "export.tensorrt_llm.pp_size": 2}
    recipe = load_recipe(None, {"model": "tiny", **given})
    deployment, seen = Deployment.of(recipe, teacher), Counter[bool]()
    for layers, heads, neurons in itertools.product((1, 2, 3), (2, 4), (64, 128, 192)):
        shape = {"num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": neurons}
        reason = refusal(teacher, teacher.with_shape(**shape), deployment)
        try:
            check_exports(["tensorrt-llm"], {**config, **shape}, recipe.export)
        except UnsupportedError:
            assert reason is not None
        else:
            assert reason is None
        seen[reason is None] += 1
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("head_dim", "reason"), [(20, "head size 20"), (264, "head size 264"), (40, None), (256, None)]
)
def test_head_sizes_without_kernels_leave_everything_out(head_dim: int, reason: str | None) -> None:
    teacher = SMOLLM.with_shape(head_dim=head_dim)
    space = enumerate_shapes(teacher, num_parameters(teacher) * 6 // 10, Deployment())
    found = [one for one in space.excluded if reason and one.reason.startswith(reason)]
    assert bool(space.shapes) == (reason is None)
    assert bool(found) == (reason is not None)


def test_without_a_search_the_tolerance_stays_two_percent() -> None:
    wanted = round(0.6 * num_parameters(SMOLLM))
    space = enumerate_shapes(SMOLLM, wanted, Deployment())
    misses = [abs(num_parameters(shape) / wanted - 1) for shape in space.shapes]
    assert max(misses) <= 0.05
    assert max(misses) > 0.02
    default = resolve_target(SMOLLM, "60%").student
    assert abs(num_parameters(default) / wanted - 1) <= 0.02
    assert default in space.shapes


@settings(deadline=None, max_examples=8)
@given(number=st.integers(2, 40), fraction=st.floats(0.5, 0.85))
def test_candidates_are_spread_over_the_list(number: int, fraction: float) -> None:
    wanted = round(fraction * num_parameters(SMOLLM))
    default = resolve_target(SMOLLM, str(wanted)).student
    shapes = enumerate_shapes(SMOLLM, wanted, Deployment()).shapes
    chosen = choose(shapes, default, number)
    assert chosen == choose(tuple(reversed(shapes)), default, number)
    assert chosen[0] == default
    assert len(set(chosen)) == len(chosen) == min(number, len(shapes))
    assert set(chosen) <= set(shapes)
    if number >= 8 and len(shapes) >= 4 * number:
        # No shape of the list is far from all that are tried, as it would be from a cluster.
        assert far(shapes, chosen) < 0.75 * far(shapes, (default, *shapes[:number]))
        depths = sorted(shape.num_hidden_layers for shape in shapes)
        lowest, highest = depths[len(depths) // 4], depths[-len(depths) // 4]
        assert min(shape.num_hidden_layers for shape in chosen) <= lowest
        assert max(shape.num_hidden_layers for shape in chosen) >= highest


def far(shapes: tuple[Dims, ...], chosen: tuple[Dims, ...]) -> float:
    """Mean distance of a shape to the nearest chosen one, in fractions of the teacher's sizes."""

    def distance(one: Dims, other: Dims) -> float:
        return math.dist(
            *([getattr(dims, name) / getattr(SMOLLM, name) for name in SIZES] for dims in (one, other))
        )

    return sum(min(distance(one, other) for other in chosen) for one in shapes) / len(shapes)


def test_as_many_shapes_are_tried_as_are_asked_for_or_all_of_a_short_list() -> None:
    for length in range(2, 40):
        shapes = [
            SMOLLM.with_shape(num_hidden_layers=1 + index % 5, intermediate_size=64 * (1 + index))
            for index in range(length)
        ]
        for number in (*range(2, length + 3), 100):
            chosen = choose(shapes, shapes[0], number)
            assert chosen[0] == shapes[0]
            assert len(set(chosen)) == len(chosen) == min(number, length)
            assert set(chosen) <= set(shapes)
