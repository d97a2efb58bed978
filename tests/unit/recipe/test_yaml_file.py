"""Recipes that nobody meant well: one error of ours, in bounded time and memory."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from compressor.core.errors import UsageError
from compressor.recipe.recipe import load_recipe
from compressor.recipe.yaml_file import MAX_BYTES, MAX_VALUES, read_recipe_tree
from tests.unit.recipe.test_recipe import written

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MODEL = "model: smollm2-135m\n"


def bomb(first: str, form: str) -> str:
    """Each line refers nine times to the line before: 9**25 values."""
    lines = [f"a: &a {first}"]
    for before, letter in itertools.pairwise(LETTERS):
        lines.append(f"{letter}: &{letter} {form % ','.join([f'*{before}'] * 9)}")
    return "\n".join(lines)


HOSTILE = {
    "aliases of lists": bomb("[x, x]", "[%s]"),
    "aliases of mappings": bomb("{x: y}", "{p: [%s]}"),
    "merged mappings": bomb("{x: y}", "{<<: [%s]}"),
    "many values": "a: [" + "x," * MAX_VALUES + "]",
    "an alias inside itself": "a: &a [1, *a]",
    "a mapping inside itself": "a: &a {b: *a}",
    "nested lists": "[" * 20_000,
    "nested mappings": "{a: " * 20_000,
    "indented": "\n".join(" " * depth + "a:" for depth in range(300)),
    "a key twice": "model: m\ntarget: 4b\nmodel: n\n",
    "a nested key twice": "model: m\ndistill: {tokens: 5, tokens: 6}\n",
    "a tag": "model: !!python/object/apply:os.system [true]\n",
    "a tag of its own": "model: !secret x\n",
    "a control character": "model: \x1b[2J\n",
    "two documents": "model: m\n---\nmodel: n\n",
    "an impossible date": "model: 2026-99-99\n",
    "a number of many digits": f"{MODEL}seed: {'9' * 9000}\n",
    "a list as a key": "? [model]\n: m\n",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_one_error(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError, match="recipe"):
        load_recipe(path, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distill: {learning_rate: .nan}", "'distill.learning_rate' is not finite"),
        ("distill: {learning_rate: .inf}", "'distill.learning_rate' is not finite"),
        ("bench: {batch_sizes: [-.inf]}", "'bench.batch_sizes.0' is not finite"),
        ("distill: {tokens: 99999999999999999999}", "'distill.tokens' is too large"),
        ("prune: {shape: {hidden_size: 99999999999999999999}}", "'prune.shape.hidden_size' is too large"),
        ("seed: -99999999999999999999", "'seed' is too large"),
        ("seed: 4294967296", "'seed' is not usable"),
        ('target: "4b\\0"', "'target' holds a NUL"),
        ('prune: {shape: {"a\\0": 3}}', "'prune.shape' holds a NUL"),
        ('target: "\\ud800"', "'target' is not UTF-8"),
        ("sparsify: {pattern: 2:4}", "'sparsify.pattern' is not usable"),
        ("1: 2", "recipe"),
    ],
)
def test_values_that_no_field_can_take_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, f"{MODEL}{text}\n")
    with pytest.raises(UsageError) as caught:
        load_recipe(path, {})
    assert message in str(caught.value)


def test_values_from_options_are_looked_at_too() -> None:
    with pytest.raises(UsageError, match=r"'distill\.tokens' is too large"):
        load_recipe(None, {"model": "m", "distill.tokens": 10**30})


def test_aliases_and_merges_of_a_reasonable_size_are_read(tmp_path: Path) -> None:
    text = (
        f"{MODEL}calibration: {{data: &text t.txt}}\n"
        "distill: {data: *text, generate: &once {tokens: 5}}\nevaluate: {<<: {seq_len: 9}, seq_len: 8}\n"
    )
    recipe = load_recipe(written(tmp_path, text), {})
    assert (recipe.distill.data, recipe.distill.generate.tokens, recipe.evaluate.seq_len) == ("t.txt", 5, 8)


def test_special_and_gigantic_files_are_not_read(tmp_path: Path) -> None:
    fifo, big = tmp_path / "fifo.yaml", tmp_path / "big.yaml"
    os.mkfifo(fifo)
    with big.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for path in (fifo, big, tmp_path, Path("/dev/zero"), tmp_path / "absent", tmp_path / ("x" * 300)):
        with pytest.raises(UsageError, match="the recipe cannot be read"):
            read_recipe_tree(path)
