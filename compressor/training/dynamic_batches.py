"""Dynamic batch loading (Sheared LLaMA, arXiv 2310.06694): every so many steps lagging domains gain weight.

A domain whose loss is further above its reference than the others' gets a larger share. Two variants
are published. The paper's (algorithm 1), with l the losses and r the references:

    delta_i = max(l_i - r_i, 0),  w_i <- w_i e^delta_i / sum_j w_j e^delta_j

The released code's keeps shortfalls (no max) and mixes in a uniform share, c = 1e-4 and k domains:

    w <- (1 - c) softmax(ln w + delta) + c / k

The stream draws a step's windows from the weights of that moment, so an update acts on the very next
step. The stream's own state carries the weights through a checkpoint; this module's carries the
reference losses and the course so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import softmax

from compressor.core.errors import UsageError, VerificationError
from compressor.core.json_files import as_record, read_json
from compressor.core.processes import is_main
from compressor.data.mixing import FloatArray, WindowStream
from compressor.data.packing import read_windows
from compressor.data.tokenise import TokenArray
from compressor.recipe.recipe import Domain
from compressor.runs.artifact import write_json
from compressor.training.extension import TrainingExtension

STATE_FILE = "dynamic_batches.json"
SMOOTHING = 1e-4

Variant = Literal["clipped", "unclipped"]

# A domain's mean cross-entropy in nats on its held-out windows, by its index in the stream. It must be
# the same number on every process: each updates the weights of its own stream.
Evaluate = Callable[[int], float]


@dataclass(frozen=True, kw_only=True)
class Update:
    """One change of the weights.

    Attributes:
        step: The optimizer step after which it was made.
        losses: The student's loss per domain.
        weights: The shares from the next step on.
    """

    step: int
    losses: tuple[float, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Course:
    """The course of the weights, for checkpoints and the report."""

    variant: Variant
    interval_steps: int
    domains: tuple[str, ...]
    reference_losses: tuple[float, ...] | None
    updates: tuple[Update, ...]


def updated_weights(
    weights: FloatArray, losses: Sequence[float], references: Sequence[float], *, variant: Variant
) -> FloatArray:
    """The shares of the next interval `[num_domains]`, summing to 1; losses are in nats."""
    excess = np.asarray(losses, dtype=np.float64) - np.asarray(references, dtype=np.float64)
    if variant == "clipped":
        clipped: FloatArray = softmax(np.log(weights) + np.maximum(excess, 0.0))
        return clipped
    unclipped: FloatArray = (1 - SMOOTHING) * softmax(np.log(weights) + excess) + SMOOTHING / len(weights)
    return unclipped


class DynamicBatchLoading(TrainingExtension):
    """Evaluates every domain at an interval and moves the stream's weights."""

    def __init__(
        self,
        stream: WindowStream,
        evaluate: Evaluate,
        evaluate_teacher: Evaluate,
        *,
        references: Sequence[float | None],
        variant: Variant,
        interval_steps: int,
    ) -> None:
        """Set up; nothing is evaluated yet.

        Args:
            stream: Whose weights move.
            evaluate: The student's loss on a domain.
            evaluate_teacher: The teacher's loss on the same windows; asked once, after the first step,
                for the domains without a reference.
            references: Reference loss per domain, None for the teacher's.
            variant: Which published rule.
            interval_steps: Optimizer steps between updates.
        """
        self._stream = stream
        self._evaluate, self._evaluate_teacher = evaluate, evaluate_teacher
        self._given = tuple(references)
        self._references: tuple[float, ...] | None = None
        self._variant: Variant = variant
        self._interval_steps = interval_steps
        self.updates: list[Update] = []

    def after_step(self, step: int) -> None:
        """Update the weights when the interval is over.

        Raises:
            VerificationError: for a loss that is not finite.
        """
        if self._references is None:
            self._references = tuple(
                self._checked(self._evaluate_teacher(index), index, "teacher") if given is None else given
                for index, given in enumerate(self._given)
            )
        if step % self._interval_steps:
            return
        losses = tuple(
            self._checked(self._evaluate(index), index, "student") for index in range(len(self._given))
        )
        weights = updated_weights(self._stream.weights, losses, self._references, variant=self._variant)
        self._stream.weights = weights
        self.updates.append(Update(step=step, losses=losses, weights=tuple(self._stream.weights.tolist())))

    def save(self, directory: Path) -> None:
        """Write references and course into a checkpoint."""
        if is_main():
            write_json(directory / STATE_FILE, self.report())

    def load(self, directory: Path) -> None:
        """Take both up again.

        Raises:
            VerificationError: when the checkpoint holds none.
        """
        file = directory / STATE_FILE
        if not file.is_file():
            raise VerificationError(
                "the training checkpoint holds no dynamic weights",
                where=str(file),
                hint="start the training again: --overwrite, or --restart-from its stage in a run",
            )
        what = "the record of dynamic weights"
        course = as_record(Course, read_json(file, what=what), what=what, where=file)
        self._references, self.updates = course.reference_losses, list(course.updates)

    def report(self) -> dict[str, object]:
        """The course of the weights so far."""
        course = Course(
            variant=self._variant,
            interval_steps=self._interval_steps,
            domains=self._stream.names,
            reference_losses=self._references,
            updates=tuple(self.updates),
        )
        return asdict(course)

    def _checked(self, loss: float, index: int, role: str) -> float:
        if not math.isfinite(loss):
            raise VerificationError(
                f"the {role}'s loss on held-out text is not finite",
                where=f"domain {self._stream.names[index]}",
                found=loss,
                hint="lower the learning rate, or look for damaged text in this domain",
            )
        return loss


def held_out_windows(
    domains: Sequence[Domain], tokenizer: Any, *, size: int, seq_len: int
) -> tuple[TokenArray, ...]:
    """Up to `size` held-out windows of every domain, `[num_windows, seq_len]` each.

    Raises:
        UsageError: for a domain whose held-out part does not fill one window.
    """
    found = []
    for domain in domains:
        try:
            found.append(read_windows(domain.data, "held_out", tokenizer, size=size, seq_len=seq_len))
        except UsageError as error:
            raise UsageError(
                f"dynamic batches need held-out text of every domain: {error.what}",
                where=f"domain {domain.name}: {error.where}",
                expected=error.expected,
                found=error.found,
                hint="give the domain a longer text, lower --context-length, or turn --dynamic-batches off",
            ) from error
    return tuple(found)
