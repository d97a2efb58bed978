"""Targets by outcome against brute force: every shape of the rule, every byte, every refusal."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from compressor.core.errors import UsageError
from compressor.models.dims import Dims, num_parameters
from compressor.models.presets import PRESETS
from compressor.planning.outcome import (
    Predictor,
    Question,
    memory_predictor,
    memory_question,
    resolve_outcome,
    rule_shapes,
)
from compressor.planning.target import resolve_target
from compressor.recipe.outcome import Outcome
from compressor.recipe.recipe import Quantize, Recipe

SMOLLM = PRESETS["smollm2-135m"].dims


def question(goal: str, target: float) -> Question:
    return Question(goal=goal, target=target, precision="fp32", runtime="r", batch_size=1, isl=8, osl=4)


def seconds(dims: Dims) -> float:
    """A time that neither grows with the parameters alone nor in proportion to them."""
    return 3.0 + dims.num_hidden_layers * (0.1 + dims.hidden_size / 900 + dims.intermediate_size / 3000)


def by_hand(teacher: Dims, is_met: Callable[[Dims], bool]) -> Dims | None:
    """The largest that a user would find by trying every percentage, in halves, one after the other."""
    fitting = [dims for dims in every_shape(teacher) if is_met(dims)]
    return max(fitting, key=num_parameters, default=None)


@cache
def every_shape(teacher: Dims) -> set[Dims]:
    found = set()
    for half in range(1, 200):
        with suppress(UsageError):
            found.add(resolve_target(teacher, f"{half * 0.5}%").student)
    return found


@pytest.mark.parametrize("speedup", [1.01, 1.3, 1.5, 1.97, 2.6])
def test_a_speedup_takes_the_largest_of_all_shapes_that_reach_it(speedup: float) -> None:
    whole = seconds(SMOLLM)
    expected = by_hand(SMOLLM, lambda dims: whole / seconds(dims) >= speedup)
    predictor = Predictor(source="roofline", basis="by hand", predict=lambda dims: whole / seconds(dims))
    resolved, promise = resolve_outcome(SMOLLM, question("speedup", speedup), predictor)
    assert resolved.student == expected
    assert promise.predicted == pytest.approx(whole / seconds(resolved.student))
    assert promise.predicted >= speedup
    assert f"{speedup:.2f}x" in resolved.rule


@pytest.mark.parametrize("latency", [7.0, 14.0, 22.0])
def test_a_latency_takes_the_largest_of_all_shapes_that_reach_it(latency: float) -> None:
    expected = by_hand(SMOLLM, lambda dims: seconds(dims) <= latency)
    predictor = Predictor(source="roofline", basis="by hand", predict=seconds)
    resolved, promise = resolve_outcome(SMOLLM, question("latency", latency), predictor)
    assert resolved.student == expected
    assert (promise.of_teacher, promise.predicted) == (seconds(SMOLLM), seconds(resolved.student))


def test_the_rules_shapes_are_those_of_every_half_percent() -> None:
    requests = [resolved.requested_parameters for resolved in rule_shapes(SMOLLM)]
    assert requests == sorted(requests, reverse=True)
    assert {resolved.student for resolved in rule_shapes(SMOLLM)} == every_shape(SMOLLM)


@pytest.mark.parametrize(
    ("fp8", "fp8_kv_cache", "dtype", "wide"),
    [
        (False, False, "auto", 2),
        (True, False, "auto", 2),
        (True, True, "auto", 2),
        (False, False, "float16", 2),
        (False, False, "float32", 4),
    ],
)
def test_memory_is_that_of_a_real_model_and_its_cache(
    *, fp8: bool, fp8_kv_cache: bool, dtype: str, wide: int
) -> None:
    quantize = Quantize(fp8=fp8, fp8_kv_cache=fp8_kv_cache)
    outcome = Outcome(batch_size=3, context_length=40)
    asked = memory_question(Recipe(model="m", outcome=outcome, quantize=quantize, dtype=dtype), 1.0)
    dims = SMOLLM.with_shape(num_hidden_layers=2, vocab_size=500)
    config = AutoConfig.for_model(
        "llama",
        **{name: getattr(dims, name) for name in ("hidden_size", "intermediate_size", "num_hidden_layers")},
        **{name: getattr(dims, name) for name in ("num_attention_heads", "num_key_value_heads", "head_dim")},
        vocab_size=500,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    weights = 0
    for name, parameter in model.named_parameters():
        is_quantised = fp8 and "_proj" in name
        weights += parameter.numel() * (1 if is_quantised else wide)
    cache = model(torch.zeros((3, 40), dtype=torch.long)).past_key_values
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    predicted = memory_predictor(asked, quantize).predict(dims)
    assert predicted == weights + held * (1 if fp8_kv_cache else wide)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.5])
def test_memory_takes_the_largest_of_all_shapes_that_fit(share: float) -> None:
    def memory(dims: Dims) -> int:
        """Twice the parameters, and keys and values of 2 x 1000 tokens in 16 bits."""
        per_token = 2 * dims.num_hidden_layers * dims.num_key_value_heads * dims.head_dim
        return 2 * num_parameters(dims) + 2 * 2000 * per_token

    limit = int(memory(SMOLLM) * share)
    outcome = Outcome(batch_size=2, context_length=1000)
    asked = memory_question(Recipe(model="m", outcome=outcome), limit)
    resolved, promise = resolve_outcome(SMOLLM, asked, memory_predictor(asked, Quantize()))
    assert resolved.student == by_hand(SMOLLM, lambda dims: memory(dims) <= limit)
    assert promise.predicted == memory(resolved.student)
    assert (promise.source, promise.precision) == ("arithmetic", "bf16")


def test_what_no_shape_reaches_is_refused_with_the_best() -> None:
    whole = seconds(SMOLLM)
    best = max(whole / seconds(resolved.student) for resolved in rule_shapes(SMOLLM))
    predictor = Predictor(source="layer times", basis="by hand", predict=lambda dims: whole / seconds(dims))
    with pytest.raises(UsageError) as caught:
        resolve_outcome(SMOLLM, question("speedup", 50.0), predictor)
    assert caught.value.where == "--target-speedup"
    assert f"at most {best:.2f}x" in str(caught.value.expected)
    assert "layer times" in str(caught.value.expected)
    smallest = min(seconds(resolved.student) for resolved in rule_shapes(SMOLLM))
    slow = Predictor(source="roofline", basis="by hand", predict=seconds)
    with pytest.raises(UsageError) as caught:
        resolve_outcome(SMOLLM, question("latency", 0.001), slow)
    assert f"at least {1000 * smallest:.2f} ms" in str(caught.value.expected)


def test_what_the_teacher_reaches_itself_is_refused() -> None:
    predictor = Predictor(source="roofline", basis="by hand", predict=seconds)
    with pytest.raises(UsageError, match="as it is"):
        resolve_outcome(SMOLLM, question("latency", math.ceil(seconds(SMOLLM))), predictor)


def test_a_promise_answers_its_own_question_alone() -> None:
    asked = question("latency", 14.0)
    _, promise = resolve_outcome(SMOLLM, asked, Predictor(source="roofline", basis="b", predict=seconds))
    assert promise.answers(asked)
    assert not promise.answers(asked.model_copy(update={"isl": 9}))
    assert not promise.answers(asked.model_copy(update={"target": 14.5}))


@pytest.mark.parametrize(
    ("value", "text"),
    [(180_000, "175.8 KiB"), (3 << 20, "3.0 MiB"), (800 << 20, "800.0 MiB"), (6 << 30, "6.000 GiB")],
)
def test_a_memory_is_told_in_a_unit_that_fits(value: int, text: str) -> None:
    assert question("memory", 6 << 30).text(value) == text
