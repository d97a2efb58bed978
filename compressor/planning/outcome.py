"""From what a student has to reach to its shape: the largest of the rule's shapes that is predicted to.

The rule's shapes are those that `--target` gives for 99.5 %, 99 %, 98.5 % and so on of the teacher. Memory is
arithmetic; speeds are predicted by whoever calls, from measured times of layers or from a roofline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from compressor.core.errors import UsageError
from compressor.core.records import Record
from compressor.models.dims import Dims, kv_cache_bytes_per_token, num_parameters, weight_bytes
from compressor.planning.target import TOLERANCE, ResolvedTarget, resolve_target
from compressor.recipe.outcome import Goal
from compressor.recipe.recipe import Quantize, Recipe

STEPS_PER_PERCENT = 2
Source = Literal["arithmetic", "layer times", "roofline"]
_UNITS: dict[Goal, tuple[float, str]] = {
    "speedup": (1.0, "{:.2f}x"),
    "memory": (1 << 30, "{:.3f} GiB"),  # smaller ones in a smaller unit
    "latency": (1e-3, "{:.2f} ms"),
}
# Below so many of a unit, the values of a memory are told in it.
_MANY = 1000
_SMALL_MEMORY = ((1 << 10, "{:.1f} KiB"), (1 << 20, "{:.1f} MiB"))
_WHAT: dict[Goal, str] = {
    "speedup": "speed-up",
    "memory": "memory of weights and key/value cache",
    "latency": "time per output token",
}


class Question(Record):
    """What is asked of the student, and under which conditions.

    Attributes:
        target: A factor, bytes, or seconds.
        runtime: What executes the model; None where that does not matter.
        isl: Prompt length of a speed, with `osl` tokens to generate.
        context_length: Tokens per sequence in the key/value cache, of a memory.
    """

    goal: Goal
    target: float
    precision: str
    runtime: str | None = None
    batch_size: int
    isl: int | None = None
    osl: int | None = None
    context_length: int | None = None

    def is_met_by(self, value: float) -> bool:
        """Whether a value is as good as the target: a speed-up at least, memory and time at most."""
        return value >= self.target if self.goal == "speedup" else value <= self.target

    def text(self, value: float) -> str:
        """A value in the goal's unit: `1.50x`, `6.000 GiB` or `800.0 MiB`, `20.00 ms`."""
        unit, form = _UNITS[self.goal]
        if self.goal == "memory":
            unit, form = next((found for found in _SMALL_MEMORY if value < found[0] * _MANY), (unit, form))
        return form.format(value / unit)

    @property
    def what(self) -> str:
        """The goal in words."""
        return _WHAT[self.goal]

    @property
    def conditions(self) -> str:
        """Under which it is meant: `fp32 in onnxruntime, 128/128, batch 1`."""
        where = f" in {self.runtime}" if self.runtime else ""
        length = f"{self.isl}/{self.osl}" if self.isl else f"context {self.context_length}"
        return f"{self.precision}{where}, {length}, batch {self.batch_size}"


class Promise(Question):
    """A question, and the answer that is expected of the planned student.

    Attributes:
        predicted: In the target's unit.
        of_teacher: The same of the teacher; of a speed-up 1.
        source: What the prediction is made from.
        basis: Where that is from, in words.
    """

    predicted: float
    of_teacher: float
    source: Source
    basis: str

    def answers(self, question: Question) -> bool:
        """Whether it was made for this question."""
        fields = {name: getattr(self, name) for name in Question.model_fields}
        return Question(**fields) == question


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """How a model's value is predicted, in the question's unit.

    Attributes:
        predict: The value of a model of these dimensions.
    """

    source: Source
    basis: str
    predict: Callable[[Dims], float]


def rule_shapes(teacher: Dims) -> Iterator[ResolvedTarget]:
    """The students of the default rule, the largest request first; sizes without one are left out."""
    for step in range(100 * STEPS_PER_PERCENT - 1, 0, -1):
        try:
            yield resolve_target(teacher, f"{step / STEPS_PER_PERCENT:g}%")
        except UsageError:
            continue


def resolve_outcome(
    teacher: Dims, question: Question, predictor: Predictor
) -> tuple[ResolvedTarget, Promise]:
    """The largest student of the rule that is predicted to answer the question, and what is promised.

    Raises:
        UsageError: when the teacher itself answers it, or no student of the rule, with the best of them.
    """
    of_teacher = predictor.predict(teacher)
    flag = f"--target-{question.goal}"
    if question.is_met_by(of_teacher):
        raise UsageError(
            "the model reaches this target as it is: there is nothing to prune",
            where=flag,
            expected=f"better than its own {question.text(of_teacher)}, predicted by {predictor.source}",
            found=question.text(question.target),
            hint="ask for more than the model has",
        )
    found: ResolvedTarget | None = None
    seen: list[float] = []
    for resolved in rule_shapes(teacher):
        assert resolved.requested_parameters is not None
        if found and resolved.requested_parameters * (1 + TOLERANCE) < num_parameters(found.student):
            break  # none that follows is larger
        seen.append(predictor.predict(resolved.student))
        if question.is_met_by(seen[-1]) and (
            found is None or num_parameters(resolved.student) > num_parameters(found.student)
        ):
            found = resolved
    if found is None:
        raise _unreachable(question, seen, predictor, flag)
    predicted = predictor.predict(found.student)
    why = (
        f"the largest student of the rule with a predicted {question.what} of "
        f"{question.text(question.target)} or better: {question.text(predicted)}"
    )
    promise = Promise(
        **question.model_dump(),
        predicted=predicted,
        of_teacher=of_teacher,
        source=predictor.source,
        basis=predictor.basis,
    )
    return replace(found, rule=f"{why}; {found.rule}"), promise


def memory_question(recipe: Recipe, target: float) -> Question:
    """What `--target-memory` asks: of the checkpoint that the run ships."""
    return Question(
        goal="memory",
        target=target,
        precision="fp8" if recipe.quantize.fp8 else recipe.stored_precision,
        batch_size=recipe.outcome.batch_size,
        context_length=recipe.outcome.context_length,
    )


def memory_predictor(question: Question, quantize: Quantize) -> Predictor:
    """Bytes of weights and key/value cache: exact, but for the few scales of FP8."""
    return Predictor(
        source="arithmetic",
        basis="weights and key/value cache, byte by byte",
        predict=lambda dims: (
            weight_bytes(dims, question.precision) + kv_cache_bytes(dims, question, quantize)
        ),
    )


def kv_cache_bytes(dims: Dims, question: Question, quantize: Quantize) -> int:
    """The key/value cache of the question's batch and context: FP8 where asked for, else as the weights."""
    assert question.context_length is not None
    tokens = question.batch_size * question.context_length
    wide = 4 if question.precision == "fp32" else 2
    return tokens * kv_cache_bytes_per_token(dims, 1 if quantize.fp8_kv_cache else wide)


def _unreachable(question: Question, seen: list[float], predictor: Predictor, flag: str) -> UsageError:
    best = max(seen) if question.goal == "speedup" else min(seen)
    limit, less = "at least", "allow more"
    if question.goal == "speedup":
        limit, less = "at most", "ask for a smaller factor"
    return UsageError(
        f"no student of the rule is predicted to reach this {question.what} ({question.conditions})",
        where=flag,
        expected=f"{limit} {question.text(best)}, predicted by {predictor.source}",
        found=question.text(question.target),
        hint=f"{less}, or compress in two steps: the student of one run is the MODEL of the next",
    )
