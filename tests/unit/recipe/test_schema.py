"""The schema of recipes: every field with its help, and nothing that only this project understands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from compressor.choices.formats import FORMATS
from compressor.cli.main import invoke
from compressor.recipe.option import Declaration, leaves_of
from compressor.recipe.recipe import Recipe


@pytest.fixture(scope="module")
def schema() -> Any:
    from compressor.recipe.schema import recipe_schema

    return json.loads(json.dumps(recipe_schema()))


def field_in(schema: Any, dotted: str) -> Any:
    found = schema
    for part in dotted.split("."):
        reference = found.get("$ref", "#/").removeprefix("#/$defs/")
        found = schema["$defs"].get(reference, found)["properties"][part]
    return found


def objects(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield part
        for inner in part.values():
            yield from objects(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from objects(inner)


def test_every_field_stands_with_its_help_and_default(schema: Any) -> None:
    for dotted, field in leaves_of(Recipe):
        found = field_in(schema, dotted)
        assert found["description"] == field.description
        if dotted != "model":
            assert found["default"] == json.loads(json.dumps(field.default))
    assert schema["required"] == ["model"]
    assert all(part["description"] for part in schema["$defs"].values())


def test_unknown_keys_are_errors_and_our_declarations_stay_out(schema: Any) -> None:
    sections = [part for part in objects(schema) if "properties" in part]
    assert len(sections) == 21
    assert all(part["additionalProperties"] is False for part in sections)
    own = set(Declaration.__dataclass_fields__) | {"gt", "ge", "lt", "le"}
    names = [part for part in objects(schema) if part not in [one["properties"] for one in sections]]
    assert [part for part in names if own & set(part)] == []


def test_text_forms_choices_and_bounds(schema: Any) -> None:
    assert field_in(schema, "distill.tokens")["anyOf"] == [
        {"type": "integer", "minimum": 0},
        {"type": "string"},
    ]
    formats = field_in(schema, "export.formats")["anyOf"][0]["items"]
    assert formats == {"enum": list(FORMATS)}
    assert {"type": "string"} in field_in(schema, "bench.batch_sizes")["anyOf"]
    assert {"type": "number"} in field_in(schema, "gates.perplexity_ratio")["anyOf"]
    (speedup,) = (part["anyOf"] for part in field_in(schema, "gates.speedup")["anyOf"] if "anyOf" in part)
    assert {"type": "number", "exclusiveMinimum": 0} in speedup


def test_the_command_prints_it(schema: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["schema"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == schema
    assert captured.err == ""
