"""How much a model takes on disk: its weights, its engine, and all of its files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from bench.report.results import Absent

# ONNX graphs keep large tensors in a file of their own beside the graph.
_WEIGHT_SUFFIXES = (".safetensors", ".onnx", ".data")
_ENGINE_SUFFIXES = (".engine",)


def weight_bytes(sizes: Mapping[str, int]) -> int | Absent:
    """Bytes of every checkpoint shard or graph, by file name; absent for an engine or only a shape."""
    return _sum(sizes, _WEIGHT_SUFFIXES, "no weights are stored apart")


def engine_bytes(sizes: Mapping[str, int]) -> int | Absent:
    """Bytes of every rank's TensorRT engine, by file name; absent where there is none."""
    return _sum(sizes, _ENGINE_SUFFIXES, "no engine")


def file_bytes(sizes: Mapping[str, int]) -> int:
    """Bytes of all files, tokenizer and configuration included."""
    return sum(sizes.values())


def _sum(sizes: Mapping[str, int], suffixes: Iterable[str], why_not: str) -> int | Absent:
    found = [size for name, size in sizes.items() if PurePosixPath(name).suffix in suffixes]
    return sum(found) if found else Absent(absent=why_not)
