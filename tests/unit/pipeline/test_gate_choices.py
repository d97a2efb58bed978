"""Gates that no run could pass, or that nothing would be measured for, are refused by a plan."""

from __future__ import annotations

import re
from typing import Any

import pytest
from scipy import stats

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
        ({"gates.speedup": "1.5x", "export.formats": "huggingface"}, "measures none of the formats"),
        ({"gates.memory": "1GiB", "export.formats": "huggingface"}, "measures none of the formats"),
        ({"gates.speedup": "1.5x", "bench.num_series": 3}, "needs 6 series"),
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


@pytest.mark.parametrize("limit", [0.9, 0.95, 0.99])
def test_a_share_that_too_few_conversations_can_show_is_refused(limit: float) -> None:
    """SciPy's interval of replies that all finish contains the limit, unless there are as many as is said."""

    def lowest(number: int) -> float:
        ends = stats.binomtest(number, number).proportion_ci(confidence_level=0.95, method="wilson")
        return float(ends.low)

    given = {**BASE, "evaluate.chat_data": "chats.jsonl", "gates.chat_finished": limit}
    with pytest.raises(UsageError, match=r"32 conversations show a share of at most 0\.893") as caught:
        api.plan(load_recipe(None, given))
    [needed] = map(int, re.findall(r"--eval-chat-size (\d+)", str(caught.value.hint)))
    assert lowest(32) < limit
    assert lowest(needed - 1) < limit <= lowest(needed)
    api.plan(load_recipe(None, {**given, "evaluate.chat_size": needed}))


def test_no_number_of_conversations_shows_that_all_replies_finish() -> None:
    given = {**BASE, "evaluate.chat_data": "chats.jsonl", "gates.chat_finished": 1}
    with pytest.raises(UsageError, match="even if all finish") as caught:
        api.plan(load_recipe(None, {**given, "evaluate.chat_size": 10_000}))
    assert caught.value.hint == "lower the limit"


def test_a_limit_on_the_size_may_be_what_the_weights_take() -> None:
    made = api.plan(load_recipe(None, BASE))
    assert isinstance(made, api.Plan)
    student = made.student.dims
    assert isinstance(student, Dims)
    least = 2 * num_parameters(student)
    api.plan(load_recipe(None, {**BASE, "gates.size": least}))
    with pytest.raises(UsageError, match="INFEASIBLE"):
        api.plan(load_recipe(None, {**BASE, "gates.size": least - 1}))
