"""Gates that no run could pass, or that nothing would be measured for, are refused by a plan."""

from __future__ import annotations

from typing import Any

import pytest

from compressor import api
from compressor.core.errors import UsageError
from compressor.models.dims import Dims, num_parameters
from compressor.recipe.recipe import load_recipe

BASE = {"model": "smollm2-135m", "target": "60%"}


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"gates.fail_on": "noisy"}, "no gate is set"),
        ({"gates.speedup": "1.5x", "bench.runtime": "none"}, "needs the benchmark"),
        ({"gates.memory": "1GiB", "bench.runtime": "none"}, "needs the benchmark"),
        ({"gates.formats": "onnx-fp16=0.9"}, "none of the formats"),
        ({"gates.size": "1GiB", "quantize.fp8": True, "export.formats": "onnx"}, "which is not written"),
        ({"gates.task_ratio": 0.9}, "needs tasks"),
        ({"gates.tasks": "arc_easy=0.5", "evaluate.tasks": "piqa:0"}, "none of the tasks"),
        ({"gates.chat_perplexity_ratio": 1.2}, "needs chat quality"),
        ({"gates.chat_finished": 0.9}, "needs chat quality"),
        ({"gates.size": "100MB"}, "INFEASIBLE"),
        ({"gates.memory": "100MB"}, "INFEASIBLE"),
    ],
)
def test_gates_that_make_no_sense_are_refused_by_a_plan(given: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        api.plan(load_recipe(None, {**BASE, **given}))


def test_a_limit_on_the_size_may_be_what_the_weights_take() -> None:
    made = api.plan(load_recipe(None, BASE))
    assert isinstance(made, api.Plan)
    student = made.student.dims
    assert isinstance(student, Dims)
    least = 2 * num_parameters(student)
    api.plan(load_recipe(None, {**BASE, "gates.size": least}))
    with pytest.raises(UsageError, match="INFEASIBLE"):
        api.plan(load_recipe(None, {**BASE, "gates.size": least - 1}))
