"""Implementations named in tables, imported when they are used: tables stay free of heavy libraries."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def resolve(place: str) -> Any:
    """The object at "package.module:attribute"."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
