"""Which attention window a model's class applies, from its config and the class's defaults."""

from __future__ import annotations

from typing import Any

# transformers' defaults where a config leaves the field out.
_DEFAULT_WINDOW, _DEFAULT_FIRST_WINDOWED = 4096, 28
_SWITCHED = ("qwen2", "qwen3")


def declared_window(config: dict[str, Any]) -> int | None:
    """The window that the config switches on, whether or not a layer uses it; None without one.

    Mistral's class applies its window to every layer and knows no switch; Qwen's is off by default. Other
    families' classes ignore the field.
    """
    model_type = config.get("model_type")
    if model_type == "mistral" or (model_type in _SWITCHED and config.get("use_sliding_window", False)):
        window: int | None = config.get("sliding_window", _DEFAULT_WINDOW)
        return window or None
    return None


def applied_window(config: dict[str, Any]) -> int | None:
    """The window of the layers that have one; None where every layer attends to everything."""
    window = declared_window(config)
    if window is None or config.get("model_type") not in _SWITCHED:
        return window
    layer_types = config.get("layer_types")
    if layer_types is not None:
        return window if "sliding_attention" in layer_types else None
    first = config.get("max_window_layers", _DEFAULT_FIRST_WINDOWED)
    return window if first < config["num_hidden_layers"] else None
