"""Choices that contradict each other, have no effect or cannot be: refused by a plan, before any work."""

from __future__ import annotations

from typing import Any

import pytest

from compressor import api
from compressor.core.errors import CompressExportError, UnsupportedError, UsageError
from compressor.planning.plan import Plan
from compressor.recipe.recipe import load_recipe

BASE = {"model": "smollm2-135m", "target": "60%"}
DEEP = {"model": "smollm2-135m", "prune.shape": {"num_hidden_layers": 12}}
WIDE = {"model": "llama3.1-8b", "target": "4b"}
SPARSE = {**BASE, "sparsify.pattern": "2:4"}


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({**BASE, "bench.min_pairs": 50}, UsageError, "min_pairs 50 is more than max_pairs 40"),
        ({**DEEP, "distill.layer_pairs": "27:12"}, UsageError, "the student has no such layer"),
        ({**DEEP, "distill.layer_pairs": "30:9"}, UsageError, "the teacher has no such layer"),
        ({**BASE, "distill.layer_pairs": "27:9"}, UsageError, "no loss compares hidden states"),
        ({**SPARSE, "sparsify.pattern": "4:2"}, UsageError, "not a sparsity pattern"),
        ({**SPARSE, "sparsify.pattern": "3:7"}, UnsupportedError, "does not divide into groups of 7"),
        ({**SPARSE, "sparsify.skip": ("*nothing*",)}, UsageError, "matches no linear layer"),
        ({**SPARSE, "sparsify.skip": ("*",)}, UsageError, "leaves nothing to sparsify"),
        ({**BASE, "distill.correction.tokens": "1b"}, UsageError, "the teacher is not corrected"),
        ({**BASE, "distill.generate.weight": 2}, UsageError, "no text is sampled"),
        ({**BASE, "distill.dynamic_batches.eval_size": 2}, UsageError, "not sampled by their loss"),
        ({**BASE, "distill.dynamic_batches.variant": "clipped"}, UsageError, "only one training text"),
        ({**BASE, "bench.precisions": "bf16"}, UsageError, "in these precisions"),
        ({"model": "smollm2-135m"}, UsageError, "size of the student is not given"),
        ({**BASE, "target": None, "search.candidates": 4}, UsageError, "where: --target"),
        ({**WIDE, "prune.depth_importance": "loss"}, UsageError, "in place of --target"),
    ],
)
def test_choices_that_are_refused(
    given: dict[str, Any], error: type[CompressExportError], match: str
) -> None:
    with pytest.raises(error) as caught:
        api.plan(load_recipe(None, given))
    assert match in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "given",
    [
        {**BASE, "bench.min_pairs": 40},
        {**DEEP, "distill.layer_pairs": "27:9"},
        {**SPARSE, "sparsify.pattern": "4:8"},
        {**SPARSE, "sparsify.skip": ("*.layers.0.*",)},
        {**BASE, "distill.correction": {"mode": "first", "tokens": "1b"}},
        {**BASE, "distill.generate": {"tokens": "1m", "weight": 2}},
        {
            **BASE,
            "distill.domains": [{"name": "a", "data": "a.txt"}, {"name": "b", "data": "b.txt"}],
            "distill.dynamic_batches.variant": "clipped",
        },
        {**BASE, "distill.generate.tokens": "1m", "distill.dynamic_batches.variant": "clipped"},
        {**BASE, "bench.precisions": "bf16,int4"},
    ],
)
def test_their_neighbours_are_planned(given: dict[str, Any]) -> None:
    assert isinstance(api.plan(load_recipe(None, given)), Plan)


@pytest.mark.parametrize("runtime", ["torch", "tensorrt-llm"])
def test_fp8_products_need_a_gpu_that_computes_them(runtime: str) -> None:
    recipe = load_recipe(None, {**WIDE, "quantize.fp8": True, "bench.runtime": runtime})
    assert isinstance(api.plan(recipe, gpu="h100"), Plan)
    with pytest.raises(UnsupportedError, match="computes no FP8") as caught:
        api.plan(recipe, gpu="a100")
    option, value = str(caught.value.hint).split()[-2:]
    assert option == "--bench-precisions"
    chosen = load_recipe(
        None, {**WIDE, "quantize.fp8": True, "bench.runtime": runtime, "bench.precisions": value}
    )
    assert isinstance(api.plan(chosen, gpu="a100"), Plan)


def test_a_server_of_fp8_checkpoints_is_planned_on_any_gpu() -> None:
    recipe = load_recipe(None, {**WIDE, "quantize.fp8": True, "bench.runtime": "vllm"})
    assert isinstance(api.plan(recipe, gpu="a100"), Plan)
