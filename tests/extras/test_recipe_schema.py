"""The schema of recipes by another program: what jsonschema accepts and refuses, the recipe does too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from compressor.core.errors import UsageError
from compressor.recipe.recipe import dump_recipe, load_recipe
from compressor.recipe.schema import recipe_schema
from tests.performance.kept import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
GOOD: dict[str, Any] = {
    "text forms": {"distill": {"tokens": "100m", "layer_pairs": "29:13", "report_to": "none"}},
    "numbers": {"distill": {"tokens": 100, "layer_pairs": [[29, 13]], "report_to": []}},
    "domains as text": {"distill": {"domains": ["web=web.txt@0.7", {"name": "code", "data": "c.txt"}]}},
    "batches": {"bench": {"batch_sizes": "1,32:64,max", "isl_osl": "128/128", "concurrency": "1,8"}},
    "gates": {"gates": {"perplexity_ratio": 1.2, "speedup": "1.3x", "tasks": "a=0.5", "size": "3GiB"}},
    "formats": {"export": {"formats": "onnx,onnx-int4"}, "prune": {"shape": "hidden_size=8"}},
    "a switch": {"quantize": {"fp8": True}},
}
BAD: dict[str, Any] = {
    "an unknown key": {"distil": {}},
    "an unknown key below": {"distill": {"token": 1}},
    "another choice": {"distill": {"loss": "kl"}},
    "another literal": {"repair": {"method": "magic"}},
    "an unknown format": {"export": {"formats": ["onyx"]}},
    "below its bound": {"distill": {"context_length": 1}},
    "below a bound of text or number": {"search": {"tokens": 0}},
    "above its bound": {"distill": {"kl_weight": 1.5}},
    "a list for a number": {"distill": {"save_steps": [1]}},
    "a section that is text": {"distill": "100m"},
}


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(recipe_schema())
    return jsonschema.Draft202012Validator(recipe_schema())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_recipes_and_what_a_run_writes_of_them(validator: Any, path: Path) -> None:
    assert list(validator.iter_errors(yaml.safe_load(path.read_text()))) == []
    assert list(validator.iter_errors(yaml.safe_load(dump_recipe(load_recipe(path, {}))))) == []


@pytest.mark.parametrize("name", GOOD)
def test_what_both_accept(validator: Any, name: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"model": "m", **GOOD[name]}))
    load_recipe(tmp_path / "recipe.yaml", {})
    assert list(validator.iter_errors({"model": "m", **GOOD[name]})) == []


@pytest.mark.parametrize("name", BAD)
def test_what_both_refuse(validator: Any, name: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"model": "m", **BAD[name]}))
    with pytest.raises(UsageError):
        load_recipe(tmp_path / "recipe.yaml", {})
    assert list(validator.iter_errors({"model": "m", **BAD[name]})) != []


def test_a_recipe_without_a_model_is_refused(validator: Any) -> None:
    assert list(validator.iter_errors({"target": "4b"})) != []
