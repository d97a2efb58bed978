"""What a config says where it says nothing: the model class's own defaults, and the windows it applies."""

from __future__ import annotations

from typing import Any

from compressor.models.config.fields import layer_types
from compressor.models.dims import dims_of_config
from compressor.models.families import family_of

_WINDOW = "sliding_window"
# Of Qwen's classes, where `use_sliding_window` is on.
_SWITCHED_WINDOW = 4096


def value_of(config: dict[str, object], field: str) -> Any:
    """A field's value, or what the family's class takes where it is absent."""
    if field in config:
        return config[field]
    return family_of(str(config.get("model_type"))).defaults.get(field)


def reads_window(config: dict[str, object]) -> bool:
    """Whether the family's class reads `sliding_window`."""
    family = family_of(str(config.get("model_type")))
    return family.window_by_layer or _WINDOW in family.defaults


def declared_window(config: dict[str, object]) -> int | None:
    """The window that the config switches on, whether or not a layer uses it; None without one.

    Mistral's class applies its window to every layer and knows no switch; Qwen's is off by default. Other
    families' classes ignore the field.
    """
    if not reads_window(config):
        return None
    window: Any = value_of(config, _WINDOW)
    if family_of(str(config.get("model_type"))).window_by_layer:
        window = config.get(_WINDOW, _SWITCHED_WINDOW) if config.get("use_sliding_window") else None
    return window or None


def applied_window(config: dict[str, object]) -> int | None:
    """The window of the layers that have one; None where every layer attends to everything."""
    window = declared_window(config)
    if not family_of(str(config.get("model_type"))).window_by_layer:
        return window
    kinds = layer_types(config, dims_of_config(config)) or ()
    return window if "sliding_attention" in kinds else None
