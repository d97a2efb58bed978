"""What NVIDIA's TensorRT-Edge-LLM converter keeps of SmolLM2's student, in 16 bits, FP8 and 2:4."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Command = Callable[..., dict[str, Any]]
Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]

MODEL = ".assets/SmolLM2-135M-Instruct.Q4_1.gguf"
CALIBRATION = ("--calib-data", ".assets/wiki.txt", "--calib-size", "4", "--calib-seq-len", "256")
PYTHON = os.environ.get("EDGE_LLM_PYTHON", ".venv-edge/bin/python")
_CHECKS = (
    "num_operators",
    "num_equal_tensors",
    "num_equal_fp8_weights",
    "num_equal_scales",
    "num_equal_bytes",
)


def run_edge_llm(command: Command) -> dict[str, Any]:
    """Make the student and its FP8 and 2:4 versions, export each, and keep what was compared."""
    with tempfile.TemporaryDirectory() as scratch:
        names = {name: f"{scratch}/{name}" for name in ("student", "fp8", "sparse", "sparse-fp8")}
        pruning = ("--target", "80m", "--importance", "weight-magnitude")
        command("prune", MODEL, *pruning, *CALIBRATION, "-o", names["student"])
        command("quantize", names["student"], "--fp8", *CALIBRATION, "-o", names["fp8"])
        wanda = ("--sparsity-method", "wanda")
        command("sparsify", names["student"], *wanda, *CALIBRATION, "-o", names["sparse"])
        command("quantize", names["sparse"], "--fp8", *CALIBRATION, "-o", names["sparse-fp8"])
        sources = {
            "16 bits": ("student", "fp16"),
            "FP8": ("fp8", "fp8"),
            "2:4, 16 bits": ("sparse", "fp16"),
            "2:4, FP8": ("sparse-fp8", "fp8"),
        }
        return {
            "student": "SmolLM2-135M to 80m, 25 of 30 layers, MLP 704 of 1536",
            "exports": {
                label: _export(command, names[source], precision, Path(scratch) / f"export-{number}")
                for number, (label, (source, precision)) in enumerate(sources.items())
            },
        }


def _export(command: Command, source: str, precision: str, out: Path) -> dict[str, Any]:
    started = time.monotonic()
    form = ("--format", "tensorrt-edge-llm", "--precision", precision, "--edge-llm-python", PYTHON)
    details = command("export", source, *form, "-o", str(out))["details"]
    checks = details["checks"]
    return {
        "seconds": round(time.monotonic() - started, 1),
        "tensorrt_edgellm": checks["tensorrt_edgellm"],
        **{name: checks[name] for name in _CHECKS},
        "sparse_tensors": checks.get("sparsity", {}).get("num_tensors", 0),
        "graph_bytes": sum(file.stat().st_size for file in (out / "llm").glob("model.onnx*")),
    }


def edge_llm_rows(data: dict[str, Any]) -> Rows:
    """Header and rows of the table."""
    header = (
        "student",
        "seconds",
        "operators",
        "16-bit tensors",
        "FP8 weights",
        "scales",
        "2:4",
        "bytes equal",
    )
    rows = [
        (
            label,
            f"{found['seconds']:.0f}",
            *(f"{found[name]:,}" for name in _CHECKS[:-1]),
            f"{found['sparse_tensors']}" if found["sparse_tensors"] else "-",
            f"{found['num_equal_bytes']:,}",
        )
        for label, found in data["exports"].items()
    ]
    return header, rows
