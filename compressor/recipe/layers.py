"""Where a recipe's values come from: its file, environment variables and options, each over the one before.

Of several ways to say the same, the one in a higher layer replaces the one in a lower layer; within one layer
they contradict each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from compressor.choices.grids import PRESETS
from compressor.core.errors import UsageError
from compressor.recipe.outcome import GOALS

PRESET = "bench.preset"
_GIVEN_BESIDE_A_PRESET = ("bench.isl_osl", "bench.batch_sizes", "bench.concurrency")
_GRID = (
    *_GIVEN_BESIDE_A_PRESET,
    *("bench.batch_pairs", "bench.largest_batch", "bench.concurrency_pairs"),
)
_SIZES = ("target", "prune.shape", *(f"outcome.{goal}" for goal in GOALS))
_REPLACES: dict[str, dict[str, object]] = {
    **{name: dict.fromkeys(other for other in _SIZES if other != name) for name in _SIZES},
    "distill.data": {"distill.domains": ()},
    "distill.warmup_steps": {"distill.warmup_ratio": None},
    "distill.warmup_ratio": {"distill.warmup_steps": None},
}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Values that go before a recipe's file.

    Attributes:
        kind: Where they come from.
        values: By the dotted names of fields.
        names: What each field is called there: a flag, or a variable.
    """

    kind: Literal["environment", "option"]
    values: Mapping[str, object] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def origin(self, name: str) -> str:
        """Where the value of a field comes from: `option --tokens`."""
        return f"{self.kind} {self.names[name]}" if name in self.names else "argument MODEL"

    def refuse_contradictions(self) -> None:
        """Refuse two ways to say the same in this layer.

        Raises:
            UsageError: naming them.
        """
        if {"distill.data", "distill.domains"} <= set(self.values):
            raise self._twice("the training text is given twice", ("distill.data", "distill.domains"))
        grid = [name for name in _GIVEN_BESIDE_A_PRESET if name in self.values]
        if PRESET in self.values and grid:
            raise self._twice(
                "a preset sets all lengths, batch sizes and concurrencies, and some are given beside it",
                (PRESET, *grid),
            )

    def _twice(self, what: str, names: Sequence[str]) -> UsageError:
        called = [self.names.get(name, name) for name in names]
        return UsageError(what, where=", ".join(called), hint="leave one of them out")


def lay_over(tree: dict[str, object], layers: Sequence[Layer], *, where: str) -> dict[str, str]:
    """Lay values over a recipe's tree, in place; returns the origin of every field that this sets.

    Raises:
        UsageError: for contradictions in one layer, or a section of the tree that is no mapping.
    """
    origins: dict[str, str] = {}
    for layer in layers:
        layer.refuse_contradictions()
        if layer.values.get(PRESET) is not None:
            for name in _GRID:
                _drop(tree, name)
                origins.pop(name, None)
        for name, value, because_of in _changes(tree, layer.values):
            _set(tree, name, value, where=where)
            origins[name] = layer.origin(because_of) if because_of in layer.values else because_of
    return origins


def _changes(tree: Mapping[str, object], values: Mapping[str, object]) -> Iterator[tuple[str, object, str]]:
    """What a layer changes: a field, its value, and the field (or the preset) that is the reason."""
    preset = PRESETS.get(str(value_in(tree, PRESET)))
    given = [name for name in _GIVEN_BESIDE_A_PRESET if name in values]
    if preset is not None and given:
        # The rest of a preset stays when one of its values is replaced.
        origin = f"preset {value_in(tree, PRESET)}"
        for name, value in grid_of(str(value_in(tree, PRESET))).items():
            yield name, value, origin
        yield PRESET, None, given[0]
    for name, value in values.items():
        for other, replaced in _REPLACES.get(name, {}).items():
            if other not in values and value_in(tree, other) is not None:
                yield other, replaced, name
        yield name, value, name


def grid_of(preset: str) -> dict[str, object]:
    """What a preset sets, by dotted names."""
    grid = PRESETS[preset]
    return {
        "bench.isl_osl": grid.isl_osl,
        "bench.batch_sizes": grid.batch_sizes,
        "bench.batch_pairs": grid.batch_pairs,
        "bench.largest_batch": grid.largest_batch,
        "bench.concurrency": grid.batch_sizes,
        "bench.concurrency_pairs": grid.batch_pairs,
    }


def value_in(tree: Mapping[str, object], dotted: str) -> object:
    """The value of a field in a tree, None where it is not set."""
    node: object = tree
    for part in dotted.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def _drop(tree: dict[str, object], dotted: str) -> None:
    """Remove a field from a tree, where it is set."""
    *sections, leaf = dotted.split(".")
    node = value_in(tree, ".".join(sections))
    if isinstance(node, dict):
        node.pop(leaf, None)


def _set(tree: dict[str, object], dotted: str, value: object, *, where: str) -> None:
    *sections, leaf = dotted.split(".")
    node = tree
    for section in sections:
        inner = node.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UsageError(
                f"recipe section {section!r} is not a mapping",
                where=where,
                found=type(inner).__name__,
                hint=f"write the section as `{section}:` with indented `name: value` lines",
            )
        node = inner
    node[leaf] = value
