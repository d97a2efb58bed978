"""The measurement `onnx-standard`: a student of SmolLM2 as graphs of standard operators, executed on the CPU.

Their perplexity stands beside the student's and, in FP8, the dequantising reader's, on the same windows: all
are measured by `evaluate`. The student is cut and repaired, not trained; what counts is how far graphs are
from it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

MODEL, TEXT = ".assets/SmolLM2-135M-Instruct.Q4_1.gguf", ".assets/wiki.txt"
CALIBRATION = ("--calib-data", TEXT, "--calib-size", "32", "--calib-seq-len", "512")
NUM_WINDOWS, WINDOW = 4, 512
PRECISIONS = ("fp16", "bf16", "fp8")

Command = Callable[..., dict[str, Any]]


def run_onnx_standard(command: Command) -> dict[str, Any]:
    """Seconds, bytes, perplexities and the verification of every precision."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        student, quantised = str(scratch / "student"), str(scratch / "quantised")
        cut = command("prune", MODEL, "--target", "80m", *CALIBRATION, "-o", str(scratch / "cut"))
        repair = ("reconstruct", cut["path"], "--teacher", MODEL)
        command(*repair, *CALIBRATION, "-o", student)
        command("quantize", student, "--fp8", *CALIBRATION, "-o", quantised)
        graphs: dict[str, dict[str, Any]] = {}
        for precision in PRECISIONS:
            out, source = scratch / precision, quantised if precision == "fp8" else student
            started = monotonic()
            made = command(
                *("export", source, "--format", "onnx-standard", "--precision", precision),
                *("-o", str(out)),
            )
            graphs[precision] = {
                "seconds": round(monotonic() - started),
                "num_bytes": sum(file.stat().st_size for file in out.glob("model.onnx*")),
                "verification": made["details"],
            }
        windows = ("--seq-len", str(WINDOW), "--size", str(NUM_WINDOWS), "--dtype", "float32")
        models = (student, quantised, *(str(scratch / precision) for precision in PRECISIONS))
        quality = command("evaluate", *models, "--data", TEXT, *windows, "-o", str(scratch / "quality"))
        measured = {name: model["perplexity"] for name, model in quality["models"].items()}
        perplexities = {"student": measured["student"], "fp8_reader": measured["quantised"]}
        for precision, graph in graphs.items():
            graph["perplexity"] = measured[precision]
    return {
        "num_parameters": cut["num_parameters"],
        "perplexity": perplexities,
        "graphs": graphs,
        "protocol": f"{NUM_WINDOWS} windows of {WINDOW} tokens of the held-out part",
    }


def onnx_standard_rows(data: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the table: the models that are compared with, then the graphs."""
    names = {"student": "student, float32", "fp8_reader": "FP8 checkpoint, dequantising reader"}
    rows = [(names[name], "-", "-", f"{value:,.2f}", "-", "-") for name, value in data["perplexity"].items()]
    for precision, graph in data["graphs"].items():
        exact = graph["verification"]["checks"]["in_float32"]
        rows.append(
            (
                f"onnx-standard {precision}",
                f"{graph['num_bytes'] / 1e6:.0f} MB",
                f"{graph['seconds']} s",
                f"{graph['perplexity']:,.2f}",
                f"{exact['kl']:.1e}",
                f"{exact['top1_agreement']:.2%}",
            )
        )
    return ("model", "size", "written and verified", "perplexity", "KL in float32", "same token"), rows
