"""Markers in a conversation's tools and calls: by them one sees what a chat template leaves out of these."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from compressor.data.messages import decoded

# Makes a marker that stands for what is named.
Marker = Callable[[str], str]


def mark_tool_(tool: dict[str, object], marker: Marker, what: str) -> None:
    """Put markers into the name, the description and the parameters' names of a tool.

    Args:
        tool: Its schema, changed in place.
        marker: Makes a marker that stands for what is named.
        what: The tool, for messages.
    """
    function = _mark_name_(tool, marker, what)
    description = function.get("description")
    if isinstance(description, str) and description.strip():
        function["description"] = f"{marker(f'the description of {what}')} {description}"
    given = function.get("parameters")
    if isinstance(schema := decoded(given), dict):
        has_properties = isinstance(schema.get("properties"), dict)
        # Some write the parameters without a schema around them.
        renamed = _renamed(schema["properties"] if has_properties else schema, marker, what)
        function["parameters"] = _as_given(
            {**schema, "properties": renamed} if has_properties else renamed, given
        )


def mark_call_(call: dict[str, object], marker: Marker, what: str) -> None:
    """Put markers into the name and every argument of a call.

    Args:
        call: Of an assistant's message, changed in place.
        marker: Makes a marker that stands for what is named.
        what: The call, for messages.
    """
    function = _mark_name_(call, marker, what)
    given = function.get("arguments")
    arguments = decoded(given)
    if isinstance(arguments, dict):
        function["arguments"] = _as_given(_marked_arguments(arguments, marker, what), given)
    elif arguments:
        marked = _with_marker(arguments, marker(f"the arguments of {what}"))
        function["arguments"] = _as_given(arguments if marked is None else marked, given)


def _mark_name_(holder: dict[str, object], marker: Marker, what: str) -> dict[str, object]:
    """Mark a function's name in place; returns the function, an empty one where there is none."""
    name = marker(what)
    function = holder.get("function", holder)
    if not isinstance(function, dict):
        return {}
    function["name"] = name
    return function


def _renamed(properties: Mapping[str, object], marker: Marker, what: str) -> dict[str, object]:
    return {
        marker(f"parameter {name!r} of {what}") if isinstance(schema, dict) else name: schema
        for name, schema in properties.items()
    }


def _marked_arguments(arguments: Mapping[str, object], marker: Marker, what: str) -> dict[str, object]:
    changed: dict[str, object] = {}
    for key, value in arguments.items():
        if value is None:
            changed[key] = value
            continue
        own = marker(f"argument {key!r} of {what}")
        marked = _with_marker(value, own)
        changed[own if marked is None else key] = value if marked is None else marked
    return changed


def _with_marker(value: object, marker: str) -> object:
    """A JSON value with a marker behind its first string, or else as its first key; None without either."""
    if isinstance(value, str):
        return value + marker
    if not isinstance(value, dict | list):
        return None
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if (changed := _with_marker(inner, marker)) is not None:
            if isinstance(value, dict):
                return {**value, key: changed}
            return [*value[:key], changed, *value[key + 1 :]]
    if isinstance(value, dict) and value:
        first, *others = value.items()
        return {marker: first[1], **dict(others)}
    return None


def _as_given(value: object, given: object) -> object:
    """The value as JSON, where that is what stood in its place."""
    is_json = isinstance(given, str) and not isinstance(value, str)
    return json.dumps(value, ensure_ascii=False) if is_json else value
