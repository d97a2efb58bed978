"""How a field of the recipe declares an option: its help, its flag, and what it decides."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

_COURSE = "course"


def option(default: Any, help: str, *, flag: str | None = None, course: bool = False, **checks: Any) -> Any:
    """A field of a recipe section, declared once: the command line is generated from it.

    Args:
        default: Its value where nobody says otherwise; `...` for a required one.
        help: One sentence that is understandable without its neighbours; the default is added to it.
        flag: Its name on the command line, where it is not the field's with dashes.
        course: It decides how a run goes (logging, memory, saving), not a byte of its result; a field that
            is not marked decides content, and another value of it makes another result.
        checks: Bounds of pydantic's `Field`, such as `ge=1`.
    """
    return Field(default, description=help, json_schema_extra={"flag": flag, _COURSE: course}, **checks)


def content_of(config: BaseModel) -> dict[str, object]:
    """The fields of a configuration that decide bytes, as JSON values; sections inside it likewise."""
    values: dict[str, object] = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        value, extra = getattr(config, name), field.json_schema_extra
        if isinstance(extra, dict) and extra.get(_COURSE):
            del values[name]
        elif isinstance(value, BaseModel):
            values[name] = content_of(value)
    return values


def fields_of(content: dict[str, object], *names: str) -> dict[str, object]:
    """Of a configuration's content, what one stage reads; a name that is not there is a mistake of ours."""
    return {name: content[name] for name in names}
