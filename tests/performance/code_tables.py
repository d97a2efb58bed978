"""Tables of the documents that are made from the tables of the code: models, formats, runtimes."""

from __future__ import annotations

from collections.abc import Callable

from compressor.choices.formats import FORMATS
from compressor.choices.runtimes import RUNTIMES
from compressor.models.families import FAMILIES

Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]
_HAS = {True: "yes", False: "-"}


def model_rows() -> Rows:
    """What can be done with each architecture."""
    rows = [
        (
            f"`{name}`",
            *(
                _HAS[can]
                for can in (
                    family.prunable,
                    family.gguf is not None,
                    family.tensorrt_llm is not None,
                    family.genai is not None,
                )
            ),
        )
        for name, family in FAMILIES.items()
    ]
    return ("`model_type`", "pruned", "read from GGUF", "TensorRT-LLM", "ONNX Runtime GenAI"), rows


def format_rows() -> Rows:
    """Every format by its name in `--formats`."""
    rows = [
        (f"`{name}`", row.help.rstrip("."), row.default.replace("never", "-"))
        for name, row in FORMATS.items()
    ]
    return ("`--formats`", "what", "in a run by default"), rows


def runtime_rows() -> Rows:
    """Every runtime, in the order in which `auto` looks for one."""
    rows = [
        (
            f"`{name}`",
            row.help.rstrip("."),
            f"`{row.executable}`" if row.executable else f"`import {row.modules[0]}`",
            ", ".join(row.precisions) or "as stored",
        )
        for name, row in RUNTIMES.items()
    ]
    return ("`--runtime`", "what it measures", "found by", "precisions"), rows


CODE_TABLES: dict[str, Callable[[], Rows]] = {
    "models": model_rows,
    "formats": format_rows,
    "runtimes": runtime_rows,
}
