"""The prune plan: which units stay, as data that a person can read and one slicer applies."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from compressor.core.errors import UsageError
from compressor.core.json_files import read_json
from compressor.models.dims import Dims
from compressor.pruning.importance import ImportanceScores

PLAN_FILE = "prune_plan.json"
SCHEMA = "compress-export/prune-plan/1"


def format_ranges(indices: Iterable[int]) -> str:
    """Ascending indices as ranges: `0-12 14 17-20`."""
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def parse_ranges(text: str | Iterable[int]) -> tuple[int, ...]:
    """The inverse of `format_ranges`; a sequence of integers passes through."""
    if not isinstance(text, str):
        return tuple(text)
    indices: list[int] = []
    for part in text.split():
        first, _, last = part.partition("-")
        indices += range(int(first), int(last or first) + 1)
    return tuple(indices)


Indices = Annotated[tuple[int, ...], BeforeValidator(parse_ranges), PlainSerializer(format_ranges)]


class PrunePlan(BaseModel):
    """Kept units per axis, as ascending 0-based indices of the source model.

    Attributes:
        source: Dimensions of the model to slice.
        student: Dimensions of the result.
        importance: How units were scored.
        layers: Kept decoder layers.
        hidden: Kept hidden channels.
        intermediate: Per kept layer, kept MLP neurons.
        heads: Per kept layer, kept query heads.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_id: str = SCHEMA
    importance: str
    source: dict[str, Any]
    student: dict[str, Any]
    layers: Indices
    hidden: Indices
    intermediate: tuple[Indices, ...]
    heads: tuple[Indices, ...]

    def write(self, directory: Path) -> None:
        """Write the plan as JSON."""
        text = json.dumps(self.model_dump(mode="json"), indent=1) + "\n"
        (directory / PLAN_FILE).write_text(text, encoding="utf-8")


def read_plan(directory: Path) -> PrunePlan:
    """Read a plan.

    Raises:
        UsageError: when it is missing or malformed.
    """
    file = directory / PLAN_FILE
    try:
        return PrunePlan.model_validate(read_json(file, what="the prune plan", error=UsageError))
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError("the prune plan cannot be read", where=str(file), found=error) from error


def make_plan(source: Dims, student: Dims, scores: ImportanceScores, *, importance: str) -> PrunePlan:
    """Choose the units to keep: the best-scored ones of every axis, ties to the lower index.

    Layers go as one contiguous block, the one of least importance (arXiv 2408.11796: single-layer
    metrics mislead when much depth goes).
    """
    layers = kept_layers(scores.blocks, source.num_hidden_layers - student.num_hidden_layers)
    return PrunePlan(
        importance=importance,
        source=source.to_dict(),
        student=student.to_dict(),
        layers=layers,
        hidden=best(scores.hidden, student.hidden_size),
        intermediate=tuple(best(scores.intermediate[i], student.intermediate_size) for i in layers),
        heads=tuple(
            best_heads(
                scores.heads[i], student.num_attention_heads, num_key_value_heads=source.num_key_value_heads
            )
            for i in layers
        ),
    )


def best(scores: torch.Tensor, count: int) -> tuple[int, ...]:
    """Ascending indices of the `count` highest scores; of equals, the lower index wins."""
    order = torch.sort(scores, descending=True, stable=True).indices[:count]
    return tuple(sorted(order.tolist()))


def best_heads(scores: torch.Tensor, count: int, *, num_key_value_heads: int) -> tuple[int, ...]:
    """The best query heads, equally many of every key/value group (grouped-query attention)."""
    per_group = count // num_key_value_heads
    group_size = len(scores) // num_key_value_heads
    kept: list[int] = []
    for group in range(num_key_value_heads):
        first = group * group_size
        kept += [first + index for index in best(scores[first : first + group_size], per_group)]
    return tuple(kept)


def kept_layers(blocks: torch.Tensor, num_removed: int) -> tuple[int, ...]:
    """All layers but the least important contiguous block of `num_removed`.

    Args:
        blocks: Importance of layers i..j-1 at entry (i, j), `[num_layers + 1, num_layers + 1]`.
        num_removed: Length of the block.
    """
    num_layers = blocks.shape[0] - 1
    if num_removed == 0:
        return tuple(range(num_layers))
    start = int(torch.argmin(torch.diagonal(blocks, offset=num_removed)))
    return tuple(index for index in range(num_layers) if not start <= index < start + num_removed)
