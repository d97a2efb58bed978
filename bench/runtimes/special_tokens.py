"""The ids that a prompt must not hold, as a model's configuration names them."""

from __future__ import annotations

from typing import Any

_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def special_token_ids(config: dict[str, Any]) -> frozenset[int]:
    """Padding, beginning and end of text; a field may be absent, null, one id or a list."""
    return frozenset(token_id for field in _FIELDS for token_id in _as_ids(config.get(field)))


def _as_ids(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
