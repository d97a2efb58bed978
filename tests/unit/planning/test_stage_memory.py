"""The memory of each stage by hand, on a model small enough to count."""

from __future__ import annotations

from typing import Any

import pytest

from compressor.models.dims import PRUNABLE_FIELDS, num_parameters
from compressor.models.presets import PRESETS
from compressor.planning.plan import make_plan
from compressor.planning.stage_memory import CHILD, LIBRARIES, QUANTIZER
from compressor.recipe.recipe import load_recipe
from tests.unit.planning.test_cost import LARGE, SMALL

P_TEACHER, P_STUDENT = num_parameters(LARGE), num_parameters(SMALL)
FORMATS = ["huggingface", "tensorrt-llm-fp16", "onnx", "onnx-standard-bf16"]


def beside_libraries(**choices: Any) -> dict[str, int]:
    given = {"model": "m", "prune.shape": {"num_hidden_layers": 1}, "bench.runtime": "none", **choices}
    given |= {"calibration.seq_len": 10, "evaluate.seq_len": 9, "export.formats": FORMATS}
    memory = make_plan(load_recipe(None, given), LARGE).memory_bytes
    return {name: size - LIBRARIES for name, size in memory.items()}


def test_every_stage_has_its_own() -> None:
    found = beside_libraries(**{"distill.tokens": 40, "distill.context_length": 10, "distill.batch_size": 1})
    assert set(found) == {
        *("prune", "reconstruct", "distill", "evaluate"),
        *("student", "tensorrt-llm-fp16", "onnx", "onnx-standard-bf16"),
    }
    # The states of three places in 16 and 32 bits: 10 tokens of 8 channels each.
    assert found["prune"] == 2 * P_TEACHER + 3 * 10 * 8 * (2 + 4)
    # Gate and up: 8 x 8 of their input, 8 x 32 with their outputs. Down: 16 x 16 and 16 x 8, which is more.
    assert found["reconstruct"] == 2 * (P_TEACHER + P_STUDENT) + 4 * 8 * (16 * 16 + 16 * 8)
    # Weights, gradients and two moments in float32, the teacher in 16 bits, and what comes with them.
    assert found["distill"] >= 16 * P_STUDENT + 2 * P_TEACHER
    assert found["student"] == 2 * 2 * P_STUDENT
    # Of 32 tokens: two times 256 positions in float32, eight times 16 in float64.
    logits = 32 * (2 * 256 * 4 + 8 * 16 * 8)
    # Both files stay mapped, in 16 bits, beside both models in 32.
    assert found["tensorrt-llm-fp16"] == 2 * (2 + 4) * P_STUDENT + logits
    assert found["onnx"] == CHILD + 2 * P_STUDENT + 2 * 4 * P_STUDENT
    assert found["onnx-standard-bf16"] == 3 * 4 * P_STUDENT + logits
    # Seven copies of the logits of nine positions over 32 tokens.
    assert found["evaluate"] == 2 * (P_TEACHER + P_STUDENT) + 7 * 4 * 9 * 32


def test_a_graph_that_is_evaluated_is_held_twice_with_the_logits_of_a_sequence() -> None:
    found = beside_libraries(**{"evaluate.exports": True, "distill.tokens": 0})
    # The float32 graph, and the bfloat16 one, which is widened.
    assert found["evaluate-exports"] == 2 * 4 * P_STUDENT + 4 * 9 * 32 + 7 * 4 * 9 * 32


@pytest.mark.parametrize(
    ("importance", "expected"),
    [("taylor", 2 * 4 * P_TEACHER), ("weight-magnitude", 2 * P_TEACHER), ("random", 2 * P_TEACHER)],
)
def test_scores_decide_what_pruning_holds(importance: str, expected: int) -> None:
    assert beside_libraries(**{"prune.importance": importance, "distill.tokens": 0})["prune"] == expected


def test_sampling_holds_the_cache_of_a_batch_and_its_logits() -> None:
    settings = {"distill.tokens": 40, "distill.context_length": 10, "distill.batch_size": 1}
    sampled = {"distill.generate.tokens": 40, "distill.generate.max_new_tokens": 5}
    sampled |= {"distill.generate.sampler": "transformers"}
    # Keys and values of two layers, a head of four channels, in 16 bits; a start token and five more.
    cache, logits = 16 * 6 * (2 * 2 * 1 * 4 * 2), 16 * 32 * (4 * 4 + 8 + 1)
    assert beside_libraries(**settings, **sampled)["generate"] == 2 * P_TEACHER + cache + logits
    prompted = beside_libraries(**settings, **sampled, **{"distill.generate.prompts": "text.jsonl"})
    assert prompted["generate"] == 2 * P_TEACHER + cache * (1 + 16 + 5) // 6 + logits
    assert "generate" not in beside_libraries(**settings)
    served = {**sampled, "distill.generate.sampler": "vllm"}
    assert "generate" not in beside_libraries(**settings, **served)


def test_a_search_holds_what_its_largest_trial_does() -> None:
    given = {"model": "m", "target": "60%", "search.candidates": 3, "bench.runtime": "none"}
    recipe = load_recipe(None, {**given, "search.tokens": "1m", "distill.context_length": 512})
    plan = make_plan(recipe, PRESETS["smollm2-135m"].dims)
    assert plan.search is not None
    single = {"model": "m", "bench.runtime": "none", "distill.tokens": "1m", "distill.context_length": 512}
    alone = []
    for shape in plan.search.candidates:
        sizes = {name: getattr(shape, name) for name in PRUNABLE_FIELDS}
        own = make_plan(load_recipe(None, {**single, "prune.shape": sizes}), PRESETS["smollm2-135m"].dims)
        alone += [own.memory_bytes[name] for name in ("prune", "reconstruct", "distill", "evaluate")]
    assert plan.memory_bytes["search"] == max(alone)


def test_what_is_not_chosen_needs_none() -> None:
    found = beside_libraries(**{"repair.method": "off", "distill.tokens": 0})
    assert not {"reconstruct", "distill", "quantize", "sparsify", "bench"} & set(found)
    sparse = {"quantize.fp8": True, "sparsify.pattern": "2:4", "sparsify.tokens": 0, "distill.tokens": 0}
    found = beside_libraries(**sparse)
    assert found["quantize"] == found["student"] == QUANTIZER + 2 * 2 * P_STUDENT
    assert found["sparsify"] == 2 * P_STUDENT + 4 * 4 * (16 * 16 + 16 * 8)
    assert "reconstruct-fp8" not in found
    repaired = beside_libraries(**sparse, **{"repair.fp8": True})["reconstruct-fp8"]
    assert repaired == QUANTIZER + 2 * 2 * P_STUDENT + 4 * 8 * (16 * 16 + 16 * 8)
    assert found["reconstruct-sparse"] == 2 * 2 * P_STUDENT + 4 * 8 * (16 * 16 + 16 * 8)
