"""The prune plan: which units stay, as data that a person can read and one slicer applies."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from compressor.core.errors import UsageError
from compressor.core.json_files import read_json, refuse_other_version
from compressor.models.axes import AXES, GROUP_AXES, PRUNABLE_AXES
from compressor.models.dims import LARGEST, Dims
from compressor.pruning.importance import ImportanceScores

PLAN_FILE = "prune_plan.json"
SCHEMA = "compress-export/prune-plan/2"


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
        if int(last or first) >= max(LARGEST.values()):
            raise ValueError(f"{part} is above every model's units")
        indices += range(int(first), int(last or first) + 1)
    return tuple(indices)


Indices = Annotated[tuple[int, ...], BeforeValidator(parse_ranges), PlainSerializer(format_ranges)]


class PrunePlan(BaseModel):
    """What stays of a model, as ascending 0-based indices of the source.

    Units are by axis: of every kept layer, or once for all where the layers share the axis. Groups of units,
    the key/value heads, are listed only where some of them go. With a rotation, whose sha256 stands here,
    those of the hidden size are principal components, by descending variance.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_id: str = SCHEMA
    importance: str
    source: Dims
    layers: Indices
    kept: dict[str, tuple[Indices, ...]]
    rotation: str | None = None

    @model_serializer(mode="wrap")
    def _named(self, plain: SerializerFunctionWrapHandler) -> dict[str, object]:
        """A plan without a rotation reads as one always did."""
        document: dict[str, object] = plain(self)
        if self.rotation is None:
            del document["rotation"]
        return document

    @model_validator(mode="after")
    def _check(self) -> PrunePlan:
        _check_indices("layers", self.layers, self.source.num_hidden_layers)
        if self.rotation is not None and not self.source.family.rotatable:
            raise ValueError(f"rotation: {self.source.model_type} models cannot be rotated")
        if not set(PRUNABLE_AXES) <= set(self.kept) <= {*PRUNABLE_AXES, *GROUP_AXES.values()}:
            raise ValueError(f"kept: expected the axes {', '.join(PRUNABLE_AXES)}")
        for name in self.kept:
            axis = AXES[name]
            lists, where = self.kept[name], f"kept.{name}"
            if len(lists) != (len(self.layers) if axis.is_per_layer else 1):
                raise ValueError(f"{where}: expected one list per kept layer, or one for all layers")
            if len({len(units) for units in lists}) > 1:
                raise ValueError(f"{where}: every layer must keep equally many units")
            num_units = self.source.units(name)
            for units in lists:
                _check_indices(where, units, num_units)
        for members, name in GROUP_AXES.items():
            num_units, num_groups = self.source.units(members), self.source.units(name)
            lists = self.kept[members]
            groups = self.kept.get(name, (tuple(range(num_groups)),) * len(lists))
            for units, kept_groups in zip(lists, groups, strict=True):
                _check_groups(f"kept.{members}", units, num_units, num_groups, kept_groups)
        return self

    @property
    def student(self) -> Dims:
        """Dimensions of the result."""
        sizes = {AXES[name].field: len(lists[0]) for name, lists in self.kept.items()}
        source = self.source if self.rotation is None else self.source.untied()
        return source.with_shape(num_hidden_layers=len(self.layers), **sizes)

    def units(self, axis: str, layer: int | None) -> tuple[int, ...] | None:
        """The kept units of an axis in a layer of the source; None: all of them."""
        if axis not in self.kept:
            return None
        position = self.layers.index(layer) if layer is not None and AXES[axis].is_per_layer else 0
        units = self.kept[axis][position]
        return None if len(units) == self.source.units(axis) else units

    def rotated(self, rotation: str) -> PrunePlan:
        """The plan that keeps as many channels of the rotated model, those of most variance.

        Of a plan with a rotation, which a person may have edited, everything stays but the sha256.
        """
        if self.rotation is not None:
            return self.model_copy(update={"rotation": rotation})
        hidden = (tuple(range(len(self.kept["hidden"][0]))),)
        return self.model_copy(update={"kept": {**self.kept, "hidden": hidden}, "rotation": rotation})

    def write(self, directory: Path) -> None:
        """Write the plan as JSON."""
        text = json.dumps(self.model_dump(mode="json"), indent=1) + "\n"
        (directory / PLAN_FILE).write_text(text, encoding="utf-8")


def _check_indices(where: str, indices: tuple[int, ...], size: int) -> None:
    if not indices or list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= size:
        raise ValueError(f"{where}: expected ascending indices from 0 to {size - 1}, at least one")


def _check_groups(
    where: str, units: tuple[int, ...], num_units: int, num_groups: int, kept_groups: tuple[int, ...]
) -> None:
    if num_groups < 1 or num_units % num_groups:
        raise ValueError(f"{where}: expected a number of units that fills the groups evenly")
    group_size = num_units // num_groups
    counts = Counter(unit // group_size for unit in units)
    if set(counts) != set(kept_groups) or len(set(counts.values())) > 1:
        raise ValueError(f"{where}: expected equally many of every {group_size} units in a row that are kept")


def read_plan(file: Path) -> PrunePlan:
    """Read a plan, which may have been edited: a UsageError where it is malformed or contradicts itself."""
    what, again = "the prune plan", "compress-export prune ... --overwrite writes it in this version"
    values = read_json(file, what=what, error=UsageError)
    refuse_other_version(values, SCHEMA, what=what, where=file, error=UsageError, hint=again, key="schema_id")
    try:
        return PrunePlan.model_validate(values)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UsageError(
            "the prune plan cannot be read",
            where=str(file),
            found=error,
            hint=f"correct the file, or use the {PLAN_FILE} that the prune command wrote",
        ) from error


def identity_plan(dims: Dims) -> PrunePlan:
    """Everything stays."""
    layers = tuple(range(dims.num_hidden_layers))
    kept = {
        name: (tuple(range(dims.units(name))),) * (len(layers) if axis.is_per_layer else 1)
        for name, axis in PRUNABLE_AXES.items()
    }
    return PrunePlan(importance="none", source=dims, layers=layers, kept=kept)


def make_plan(
    source: Dims,
    student: Dims,
    scores: ImportanceScores,
    *,
    importance: str,
    depth: Literal["contiguous", "scattered"] = "contiguous",
    removed_layers: tuple[int, ...] = (),
) -> PrunePlan:
    """Choose the units to keep: the best-scored ones of every axis, ties to the lower index.

    Of groups of units the ones with the highest sum stay.

    Args:
        source: Dimensions of the model to slice.
        student: Those of the result.
        scores: Of all units.
        importance: How they were measured.
        depth: Whether layers go as the one block of least importance (arXiv 2408.11796: single-layer metrics
            mislead when much depth goes), or as the ones of least importance alone (arXiv 2403.03853).
        removed_layers: The layers to remove, where they are known; then no score decides.
    """
    count = student.num_hidden_layers
    if removed_layers:
        layers = tuple(index for index in range(source.num_hidden_layers) if index not in removed_layers)
    elif depth == "scattered":
        layers = best(torch.diagonal(scores.blocks, offset=1), count)
    else:
        layers = kept_layers(scores.blocks, source.num_hidden_layers - count)
    kept: dict[str, tuple[tuple[int, ...], ...]] = {}
    for name, axis in PRUNABLE_AXES.items():
        rows = [scores.units[name][index] for index in layers] if axis.is_per_layer else [scores.units[name]]
        count = student.units(name)
        if axis.groups is None:
            kept[name] = tuple(best(row, count) for row in rows)
            continue
        grouped = [row.view(source.units(GROUP_AXES[name]), -1) for row in rows]
        num_groups = student.units(GROUP_AXES[name])
        groups = tuple(best(row.sum(1), num_groups) for row in grouped)
        kept[name] = tuple(map(partial(_best_within, count=count), grouped, groups))
        if num_groups < source.units(GROUP_AXES[name]):
            kept[GROUP_AXES[name]] = groups
    return PrunePlan(importance=importance, source=source, layers=layers, kept=kept)


def _best_within(grouped: torch.Tensor, groups: tuple[int, ...], *, count: int) -> tuple[int, ...]:
    """The `count` best units of these groups, equally many of each; scores are `[num_groups, group_size]`."""
    size = grouped.shape[1]
    chosen = best(grouped[list(groups)].flatten(), count, num_groups=len(groups))
    return tuple(groups[unit // size] * size + unit % size for unit in chosen)


def best(scores: torch.Tensor, count: int, *, num_groups: int = 1) -> tuple[int, ...]:
    """Ascending indices of the highest scores, equally many of every group; of equals, the lower index wins.

    Scores are `[num_units]`, and `count` a multiple of the number of groups of neighbouring units.
    """
    grouped = scores.view(num_groups, -1)
    order = torch.sort(grouped, descending=True, stable=True, dim=1).indices[:, : count // num_groups]
    first = torch.arange(num_groups)[:, None] * grouped.shape[1]
    return tuple(sorted((first + order).flatten().tolist()))


def kept_layers(blocks: torch.Tensor, num_removed: int) -> tuple[int, ...]:
    """All layers but the least important contiguous block of `num_removed`; see `ImportanceScores.blocks`."""
    num_layers = blocks.shape[0] - 1
    if num_removed == 0:
        return tuple(range(num_layers))
    start = int(torch.argmin(torch.diagonal(blocks, offset=num_removed)))
    return tuple(index for index in range(num_layers) if not start <= index < start + num_removed)
