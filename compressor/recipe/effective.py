"""The recipe that a command uses, every value with the place that it comes from."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from compressor.recipe.layers import PRESET, Layer, grid_of, lay_over, value_in
from compressor.recipe.option import Section, leaves_of, section_of
from compressor.recipe.recipe import Recipe, load_recipe
from compressor.recipe.yaml_file import read_recipe_tree

SCHEMA = "compress-export/config/1"
DEFAULT = "default"
# Fields that are read from the text of another one.
_READ_FROM = {
    "bench.batch_pairs": "bench.batch_sizes",
    "bench.largest_batch": "bench.batch_sizes",
    "bench.concurrency_pairs": "bench.concurrency",
}


class Effective:
    """A recipe and the origins of its values: default, preset, file, environment, option or argument.

    Attributes:
        recipe: With what a preset of the benchmark sets written out.
        sources: By the dotted names of all single values.
    """

    def __init__(self, path: Path | None, environment: Layer, options: Layer) -> None:
        """The recipe that `load_recipe` makes of the same.

        Raises:
            UsageError: as `load_recipe` does.
        """
        recipe = load_recipe(path, options.values, flags=options.names, environment=environment)
        file = read_recipe_tree(path) if path is not None else {}
        origins = lay_over(copy.deepcopy(file), (environment, options), where=str(path))
        preset = recipe.bench.preset
        grid = grid_of(preset) if preset else {}
        values = {name.removeprefix("bench."): value for name, value in grid.items()}
        self.recipe = recipe.model_copy(update={"bench": recipe.bench.model_copy(update=values)})
        usual = Recipe(model=recipe.model)
        self.sources: dict[str, str] = {}
        for name, _ in leaves_of(Recipe):
            of = name
            if name in _READ_FROM and value_in(file, name) is None and name not in origins:
                of = _READ_FROM[name] if _value(recipe, name) != _value(usual, name) else name
            source = DEFAULT if value_in(file, of) is None else f"file {path}"
            source = origins.get(of, source)
            self.sources[name] = f"preset {preset}, {origins.get(PRESET, 'file')}" if name in grid else source

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return {"schema": SCHEMA, "recipe": self.recipe.model_dump(mode="json"), "sources": self.sources}

    def to_yaml(self) -> str:
        """A recipe file, which `--config` reads, with the sources as comments."""
        return "\n".join(self._lines(Recipe, self.recipe.model_dump(mode="json"), ""))

    def _lines(self, section: type[Section], values: Mapping[str, object], above: str) -> Iterator[str]:
        indent = "  " * above.count(".")
        for name, field in section.model_fields.items():
            value, inner = values[name], section_of(field)
            if inner is not None and isinstance(value, Mapping):
                yield f"{indent}{name}:"
                yield from self._lines(inner, value, f"{above}{name}.")
            else:
                source = self.sources[above + name].replace("\n", "\\n")
                yield f"{indent}{_one_line(name, value)}  # {source}"


def _one_line(name: str, value: object) -> str:
    """A key and its value as YAML on one line, whatever the value holds."""
    written = yaml.safe_dump({name: value}, default_flow_style=True, width=math.inf).strip()[1:-1]
    return f"{name}: {json.dumps(value)}" if "\n" in written else written


def _value(recipe: Recipe, name: str) -> object:
    value: object = recipe
    for part in name.split("."):
        value = getattr(value, part)
    return value
