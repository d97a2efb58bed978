"""The tables of `make gpu`, one by part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]
_GIB = 2**30


def _rows(
    data: dict[str, Any], header: tuple[str, ...], row: Callable[[dict[str, Any]], tuple[str, ...]]
) -> Rows:
    """A row for each cell, or its reason in place of the figures."""
    width = len(header) - 1
    rows = []
    for key, figures in data["cells"].items():
        shown = (figures["reason"], *[""] * (width - 1)) if "reason" in figures else row(figures)
        rows.append((key, *shown))
    return header, rows


def _gib(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / _GIB:.1f} GiB"


def _gemm(figures: dict[str, Any]) -> tuple[str, ...]:
    tokens = list(figures["dense_us"])
    last = tokens[-1]
    speedup = figures["dense_us"][last] / figures["sparse_us"][last]
    pays = figures["pays_from_tokens"]
    return (
        f"{figures['out_features']} x {figures['in_features']}",
        f"{figures['dense_us'][last]:.0f} us",
        f"{figures['sparse_us'][last]:.0f} us",
        f"{speedup:.2f}x",
        "never" if pays is None else f"{pays} tokens",
    )


def _runtime(figures: dict[str, Any]) -> tuple[str, ...]:
    rate, first = figures["output_tokens_per_s"], figures["ttft_s"]
    return f"{rate:,.0f}", f"{1000 * first:.0f} ms", _gib(figures["peak_bytes"])


def _distill(figures: dict[str, Any]) -> tuple[str, ...]:
    share = figures["utilisation"]
    return (
        f"{figures['tokens_per_s']:,.0f}",
        "-" if share is None else f"{share:.0%}",
        _gib(figures["peak_bytes"]),
        _gib(figures["planned_bytes"]),
    )


GPU_TABLES: dict[str, Callable[[dict[str, Any]], Rows]] = {
    "gemm": lambda data: _rows(
        data, ("product", "shape", "dense, most tokens", "2:4", "speed-up", "2:4 pays from"), _gemm
    ),
    "runtime": lambda data: _rows(
        data, ("model, lengths, batch", "output tokens/s", "first token", "memory"), _runtime
    ),
    "distill": lambda data: _rows(
        data, ("windows", "tokens/s", "of the peak", "memory", "planned memory"), _distill
    ),
    "sparsegpt": lambda data: _rows(
        data,
        ("matrix", "seconds", "memory"),
        lambda figures: (f"{figures['seconds']:.2f}", _gib(figures["peak_bytes"])),
    ),
    "calibration": lambda data: _rows(
        data,
        ("layer", "tokens/s", "memory"),
        lambda figures: (f"{figures['tokens_per_s']:,.0f}", _gib(figures["peak_bytes"])),
    ),
}
