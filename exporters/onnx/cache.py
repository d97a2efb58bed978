"""The KV cache of a graph, as what lies in its directory states it: of what shape an empty one is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from compressor.core.errors import VerificationError
from compressor.core.json_files import read_json_mapping
from exporters.onnx.builder import GENAI_CONFIG_FILE, GRAPH_FILE, load_graph

_KEY = re.compile(r"past_key_values\.\d+\.key")
_RANK = 4  # batch, key/value heads, past, head_dim


class CacheDims(Protocol):
    """What an empty cache is made by; a model's dimensions have it too."""

    @property
    def num_hidden_layers(self) -> int:
        """Decoder layers, each with a key and a value."""

    @property
    def num_key_value_heads(self) -> int:
        """Heads of each."""

    @property
    def head_dim(self) -> int:
        """Channels of a head."""


@dataclass(frozen=True, kw_only=True)
class StatedCache:
    """The dimensions that were read; `context_length` is the number of positions, None without a limit."""

    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int
    context_length: int | None = None


def genai_cache(directory: Path) -> StatedCache:
    """The cache that `genai_config.json` states; VerificationError where it does not."""
    file = directory / GENAI_CONFIG_FILE
    model = _mapping(read_json_mapping(file, what="the GenAI config").get("model"))
    decoder = _mapping(model.get("decoder"))

    def number(section: Mapping[str, Any], name: str) -> int:
        value = section.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise VerificationError(
                "the GenAI config does not state the graph's dimensions",
                where=f"{file}: {name}",
                expected="a number above 0",
                found=value,
                hint="export again",
            )
        return value

    return StatedCache(
        num_hidden_layers=number(decoder, "num_hidden_layers"),
        num_key_value_heads=number(decoder, "num_key_value_heads"),
        head_dim=number(decoder, "head_size"),
        context_length=number(model, "context_length"),
    )


def standard_cache(directory: Path) -> StatedCache:
    """The cache that the inputs of a standard graph state; VerificationError where they do not."""
    keys = [entry for entry in load_graph(directory).graph.input if _KEY.fullmatch(entry.name)]
    shapes = {tuple(dim.dim_value for dim in entry.type.tensor_type.shape.dim) for entry in keys}
    shape = shapes.pop() if len(shapes) == 1 else ()
    if len(shape) != _RANK or not (shape[1] > 0 and shape[3] > 0):
        raise VerificationError(
            "the graph states no KV cache that is alike in every layer",
            where=str(directory / GRAPH_FILE),
            expected="inputs past_key_values.N.key of [batch, heads, past, head_dim]",
            found=f"{len(keys)} such inputs, of other shapes" if keys else "no such input",
            hint="export again",
        )
    return StatedCache(num_hidden_layers=len(keys), num_key_value_heads=shape[1], head_dim=shape[3])


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
