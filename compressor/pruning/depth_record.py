"""`depth.json`: what a model loses with each block of its layers, and which layers were removed for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from compressor.core.records import Record

DEPTH_FILE = "depth.json"
PAGE_FILE = "depth.html"
SCHEMA: Literal["compress-export/depth/1"] = "compress-export/depth/1"


class Measured(Record):
    """How good a model is: mean negative log-likelihood in nats per token, and the share of right answers."""

    loss: float
    accuracy: float | None = None

    @property
    def perplexity(self) -> float:
        """The exponential of the loss; infinite where that is too large a number."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


class Curve(Record):
    """What is left without each block of `size` neighbours; entry i is without layers i..i+size-1."""

    size: int
    without: tuple[Measured, ...]


class Removal(Record):
    """One layer that was removed after others, and what was left without it and them."""

    layer: int
    without: Measured


class DepthChoice(Record):
    """By what layers were removed: the model with all of them, and without those."""

    importance: Literal["loss", "task"]
    whole: Measured
    without: Measured


class DepthRecord(Record):
    """Everything that was measured.

    Attributes:
        whole: The model with all layers.
        curves: By rising size of the blocks.
        removals: The layers that were removed one after the other; empty where one block was.
        removed_layers: All of them, ascending.
        num_questions: Of the task; 0 without one.
    """

    schema_id: Literal["compress-export/depth/1"] = Field(SCHEMA, alias="schema")
    importance: Literal["loss", "task"]
    removal: Literal["contiguous", "scattered"]
    num_layers: int
    seq_len: int
    num_sequences: int
    num_questions: int
    whole: Measured
    curves: tuple[Curve, ...]
    removals: tuple[Removal, ...] = ()
    removed_layers: tuple[int, ...]

    @property
    def choice(self) -> DepthChoice:
        """What the removed layers cost."""
        if self.removals:
            without = self.removals[-1].without
        else:
            curve = next(curve for curve in self.curves if curve.size == len(self.removed_layers))
            without = curve.without[self.removed_layers[0]]
        return DepthChoice(importance=self.importance, whole=self.whole, without=without)


def best_position(without: Sequence[Measured]) -> int:
    """Where a block is missed least: the highest accuracy, then the least loss, then the first."""
    return min(range(len(without)), key=lambda at: (-(without[at].accuracy or 0.0), without[at].loss))
