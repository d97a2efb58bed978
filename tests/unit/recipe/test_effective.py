"""The recipe that a command prints: it is what is used, and reads back as the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from compressor.cli.main import invoke
from compressor.recipe.option import leaves_of
from compressor.recipe.recipe import Recipe, load_recipe
from tests.performance.kept import ROOT

Capture = pytest.CaptureFixture[str]
AWKWARD = "a: b # no 'comment'\nand a second line.txt"


def printed(capsys: Capture, *words: object) -> str:
    assert invoke([*map(str, words), "--print-config"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_what_is_printed_of_a_shipped_recipe_reads_back(
    recipe: Path, tmp_path: Path, capsys: Capture
) -> None:
    shown = printed(capsys, "run", "--config", recipe)
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    assert load_recipe(again, {}) == load_recipe(recipe, {})
    given = {name for name, _ in leaves_of(Recipe) if _holds(yaml.safe_load(recipe.read_text()), name)}
    from_file = [line for line in shown.splitlines() if line.endswith(f"# file {recipe}")]
    assert len(from_file) == len(given) > 3


def _holds(tree: object, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(tree, dict) or tree.get(part) is None:
            return False
        tree = tree[part]
    return True


def test_values_of_every_kind_read_back(tmp_path: Path, capsys: Capture) -> None:
    words = (
        *("run", "llama3.1-8b", "--target-memory", "6GiB", "--domain", f"web={AWKWARD}@0.25", "--no-check"),
        *("--layer-pairs", "29:13,28:12", "--report-to", "none", "--isl-osl", "128/128", "--batch-size"),
        *("1,32:64,max", "--skip", "*down*", "--perplexity-ratio", "3sigma", "--gate-tasks", "a=0.00001"),
    )
    words = tuple("--gate-perplexity-ratio" if word == "--perplexity-ratio" else word for word in words)
    (tmp_path / "again.yaml").write_text(printed(capsys, *words))
    read = load_recipe(tmp_path / "again.yaml", {})
    assert read.distill.domains[0].data == AWKWARD
    assert read.distill.layer_pairs == ((29, 13), (28, 12))
    assert (read.bench.batch_pairs, read.bench.largest_batch) == (((32, 64),), True)
    assert (read.gates.tasks, read.gates.perplexity_ratio) == ({"a": 1e-5}, "3sigma")
    assert read.outcome.memory == 6 << 30


def test_what_belongs_to_one_option_has_its_source(capsys: Capture) -> None:
    shown = printed(capsys, "run", "llama3.1-8b", "--target", "4b", "--batch-size", "1,32:64")
    assert "  batch_pairs: [[32, 64]]  # option --batch-size" in shown.splitlines()
    assert "  largest_batch: false  # default" in shown.splitlines()


def test_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    printed(capsys, "prune", "nobody/nothing", "--target", "50%", "-o", "out")
    assert list(tmp_path.iterdir()) == []
