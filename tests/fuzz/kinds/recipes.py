"""Recipes: YAML that anyone may have written, read by `plan` and by a dry run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.fuzz.commands import commanded
from tests.fuzz.kind import Finished, Kind, Seed, Target, Workspace
from tests.fuzz.mutations import MARK, TEXTS, Draw, mutated_text, mutated_tree

_FILE = "recipe.yaml"
SNIPPETS = (
    *TEXTS,
    f"!!python/object/apply:os.system ['touch {MARK}']",
    f"a: !!python/name:os.system {MARK}",
    "a: &a [*a]",
    "x: &x {y: *x}",
    "b: &b [1, 1, 1, 1, 1, 1, 1, 1, 1]\nc: &c [*b, *b, *b, *b, *b, *b, *b]\nd: [*c, *c, *c, *c, *c, *c]",
    "<<: {target: 4b}",
    "? [a, b]\n: c",
    "? {a: b}\n: c",
    "%TAG ! tag:yaml.org,2002:python/",
    "---",
    "...",
    "!!binary aGVsbG8=",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "2026-01-01",
    "0x7fffffffffffffff",
    "1:30:00",
    "1_000_000",
    ".inf",
    "-.nan",
    "~",
    "y",
    "\t- tab",
    "\ufeff",
    "[" * 3000,
    "{a: " * 2000,
    "9" * 5000,
    "0b" + "1" * 4000,
)


def recipe_seeds(scratch: Path) -> list[Seed]:
    from compressor.recipe.recipe import Recipe, dump_recipe

    del scratch
    own = Path(__file__).resolve().parents[3] / "recipes"
    texts = [path.read_text(encoding="utf-8") for path in sorted(own.glob("*minitron*.yaml"))]
    whole: dict[str, Any] = {"model": "llama3.1-8b", "target": "4b"}
    texts.append(dump_recipe(Recipe.model_validate(whole)))
    gates = {"perplexity_ratio": 1.5, "top1": 0.5, "size": "9GB"}
    more = {"sparsify": {"pattern": "2:4"}, "quantize": {"fp8": True}, "gates": gates}
    texts.append(dump_recipe(Recipe.model_validate({**whole, **more})))
    target = Target(file=_FILE, change=mutated_yaml)
    return [Seed(files={_FILE: text.encode()}, targets=(target,)) for text in texts]


def mutated_yaml(draw: Draw, content: bytes) -> bytes:
    """YAML changed as a value, or as text."""
    if draw(st.integers(0, 2)) == 0:
        return mutated_text(draw, content, SNIPPETS)
    tree = mutated_tree(draw, yaml.safe_load(content))
    return yaml.safe_dump(tree, sort_keys=False).encode("utf-8", "surrogatepass")


def read_recipe(workspace: Workspace, way: int) -> Iterator[Finished]:
    recipe = workspace.input / _FILE
    commands = (
        ("plan", "--config", recipe, "--json"),
        ("run", "--config", recipe, "--dry-run", "-o", workspace.out),
    )
    yield commanded(*commands[way % 4 == 3])


RECIPE_KINDS = (Kind(name="recipe", seeds=recipe_seeds, read=read_recipe),)
