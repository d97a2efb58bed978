"""The JSON schema of a recipe, made of its fields: types, bounds, choices, help texts and defaults.

It accepts what a recipe's YAML may hold, text such as `100m` or `128/128,1000/1000` in place of numbers among
it; how such text must look, and which values go together, only the recipe itself checks.
"""

from __future__ import annotations

import inspect
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from compressor.recipe.forms import FromText
from compressor.recipe.option import Declaration, OneOf
from compressor.recipe.recipe import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TEXT: JsonSchemaValue = {"type": "string"}
_DECLARED = tuple(Declaration.__dataclass_fields__)


class _RecipeSchema(GenerateJsonSchema):
    """Pydantic's generator, with what it cannot know: text forms, tables of choices, and our declarations."""

    schema_dialect = DIALECT

    def field_title_should_be_set(self, schema: object) -> bool:
        """No titles: they only repeat the names."""
        del schema
        return False

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        """What a validator makes of text may be given as text."""
        inner = super().function_before_schema(schema)
        return _or_text(inner) if isinstance(schema["function"]["function"], FromText) else inner

    def function_after_schema(self, schema: core_schema.AfterValidatorFunctionSchema) -> JsonSchemaValue:
        """A check against a table accepts the table's names."""
        inner = super().function_after_schema(schema)
        check = schema["function"]["function"]
        return {"enum": list(check.table)} if isinstance(check, OneOf) else inner

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """A section, described by the first paragraph of its docstring; without our declarations."""
        found = super().model_schema(schema)
        described = inspect.getdoc(schema["cls"]) or ""
        found["description"] = " ".join(described.partition("\n\n")[0].split())
        for name, field in found.get("properties", {}).items():
            for declared in _DECLARED:
                field.pop(declared, None)
            if name in _TEXT_FORMS.get(schema["cls"].__name__, ()):
                found["properties"][name] = {**_or_text(_kind_of(field)), **_about(field)}
        return found


# Fields that a section's own validator reads from text, by section.
_TEXT_FORMS = {"Bench": ("batch_sizes", "concurrency")}
_BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
_ABOUT = ("title", "description", "default")


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, as draft 2020-12."""
    made = Recipe.model_json_schema(schema_generator=_RecipeSchema)
    domain = made["$defs"]["Domain"]
    made["$defs"]["Domain"] = {**_or_text(_kind_of(domain)), **_about(domain)}
    return {"$schema": DIALECT, **_bounded(made), "title": "compress-export recipe"}


def _bounded(schema: Any) -> Any:
    """A schema whose bounds stand at its numbers; pydantic leaves those of a union beside it."""
    if isinstance(schema, list):
        return [_bounded(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: _bounded(value) for name, value in schema.items() if name not in _BOUNDS}
    bounds = {_BOUNDS[name]: value for name, value in schema.items() if name in _BOUNDS}
    if bounds:
        kept["anyOf"] = [
            {**part, **bounds} if part.get("type") in ("integer", "number") else part
            for part in kept["anyOf"]
        ]
    return kept


def _or_text(schema: JsonSchemaValue) -> JsonSchemaValue:
    return schema if schema == _TEXT else {"anyOf": [schema, _TEXT]}


def _kind_of(schema: JsonSchemaValue) -> JsonSchemaValue:
    return {name: value for name, value in schema.items() if name not in _ABOUT}


def _about(schema: JsonSchemaValue) -> JsonSchemaValue:
    return {name: schema[name] for name in _ABOUT if name in schema}
