"""Reading a recipe's YAML, which may be anyone's: bounded in time and memory, and nothing guessed.

PyYAML's safe loader makes no objects, but lets a few lines stand for billions of values (aliases of
aliases), and of two equal keys it silently takes the second.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from compressor.core.errors import UsageError
from compressor.core.regular_files import read_regular_text

# Far above any recipe: one with every field written out takes 4 kB and 150 values.
MAX_BYTES = 1 << 17
MAX_VALUES = 20_000
# Whole numbers up to here are exact everywhere, in JSON and in arithmetic with fractions too.
MAX_INTEGER = 1 << 53
_EXAMPLE = "write it like those in recipes/: `name: value` lines, sections indented by two spaces"
_SURROGATES = re.compile("[\ud800-\udfff]")  # which UTF-8 cannot encode
_MERGE_TAG = "tag:yaml.org,2002:merge"


def read_recipe_tree(path: Path) -> dict[str, object]:
    """The mapping that a recipe file holds.

    Raises:
        UsageError: a file that is missing, special or too large; no YAML; a key given twice; aliases that
            contain themselves or stand for too many values; values that no field can take.
    """
    text = read_regular_text(path, what="the recipe", error=UsageError, max_bytes=MAX_BYTES)
    try:
        tree = yaml.load(text, Loader=_RecipeLoader)  # noqa: S506 - a safe loader
    except RecursionError as error:
        raise UsageError("the recipe is nested too deeply", where=str(path), hint=_EXAMPLE) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number of thousands of digits, a date
        raise UsageError(
            "the recipe is not valid YAML", where=str(path), found=error, hint=_EXAMPLE
        ) from error
    if not isinstance(tree, dict):
        raise UsageError(
            "the recipe is not a mapping", where=str(path), found=type(tree).__name__, hint=_EXAMPLE
        )
    return tree


def refuse_unusable_values(tree: object, *, where: str) -> None:
    """Refuse values that no field of a recipe can take, whether from a file or from options.

    Raises:
        UsageError: naming the first number that is too large or not finite, or text that no path, file or
            terminal can hold.
    """
    for name, value in _leaves(tree):
        problem, expected = "", "text without NUL, in UTF-8"
        if isinstance(value, float) and not math.isfinite(value):
            problem, expected = "is not finite", "a number"
        elif isinstance(value, int) and abs(value) > MAX_INTEGER:
            problem, expected = "is too large", f"at most {MAX_INTEGER:,}"
        elif isinstance(value, str) and "\0" in value:
            problem = "holds a NUL character"
        elif isinstance(value, str) and _SURROGATES.search(value):
            problem = "is not UTF-8"
        if problem:
            # A number of a million digits cannot even be printed.
            found = ascii(value)[:80] if isinstance(value, str | float) else None
            raise UsageError(
                f"recipe value {name!r} {problem}",
                where=where,
                expected=expected,
                found=found,
                hint="change this value to what is expected",
            )


def _leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield name, key
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{name}.{index}")
    else:
        yield name, value


class _RecipeLoader(yaml.SafeLoader):
    """The safe loader, which looks at the whole document before it makes values of it."""

    def get_single_node(self) -> yaml.Node | None:
        """The document's root, checked."""
        root = super().get_single_node()
        if root is not None:
            _num_values(root, counted={}, above=set())
        return root


def _num_values(node: yaml.Node, counted: dict[int, int], above: set[int]) -> int:
    """How many values a node stands for, aliases written out.

    Raises:
        yaml.YAMLError: for a node inside itself, too many values, or a key given twice.
    """
    if id(node) in counted:
        return counted[id(node)]
    if id(node) in above:
        raise _complaint("an alias stands inside its own anchor", node)
    above.add(id(node))
    number = 1
    for inner in _inner(node):
        number += _num_values(inner, counted, above)
        if number > MAX_VALUES:
            raise _complaint(f"more than {MAX_VALUES:,} values, aliases written out", node)
    above.remove(id(node))
    counted[id(node)] = number
    return number


def _inner(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE_TAG:
                if key.value in seen:
                    raise _complaint(f"the key {key.value[:80]!r} is given twice", key)
                seen.add(key.value)
            yield key
            yield value


def _complaint(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
