"""The measurement `quantized-repair`: FP8 models before and after `reconstruct`, against their 16-bit ones.

SmolLM2 as it is, and cut to 80M parameters and repaired. Perplexity and KL are on the held-out part of the
text that both calibrations read, and on a text that nothing has read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from time import monotonic
from typing import Any

Command = Callable[..., dict[str, Any]]
Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]

MODEL = ".assets/SmolLM2-135M-Instruct.Q4_1.gguf"
CALIBRATION = ("--calib-data", ".assets/wiki.txt", "--calib-size", "24", "--calib-seq-len", "512")
TEXTS = {"wiki, held-out": ".assets/wiki.txt", "c4": ".assets/c4.txt"}
WINDOWS = ("--seq-len", "512", "--size", "8")
STUDENTS = ("SmolLM2-135M", "cut to 80M and repaired")
# What is kept of the record of a repair.
DETAILS = ("num_accepted", "num_left", "layers")


def run_quantised_repair(command: Command) -> dict[str, Any]:
    """What the repair accepted, its seconds, and the figures of every model by text."""
    with tempfile.TemporaryDirectory() as scratch:
        command("prune", MODEL, "--target", "80m", *CALIBRATION, "-o", f"{scratch}/cut")
        repaired = f"{scratch}/student"
        command("reconstruct", f"{scratch}/cut", "--teacher", MODEL, *CALIBRATION, "-o", repaired)
        sources = dict(zip(STUDENTS, (MODEL, repaired), strict=True))
        return {
            "students": {
                name: _student(command, source, f"{scratch}/{number}")
                for number, (name, source) in enumerate(sources.items())
            },
            "windows": " ".join(WINDOWS),
        }


def _student(command: Command, source: str, out: str) -> dict[str, Any]:
    fp8, repaired = f"{out}-fp8", f"{out}-repaired"
    command("quantize", source, "--fp8", *CALIBRATION, "-o", fp8)
    started = monotonic()
    details = command("reconstruct", fp8, "--teacher", source, *CALIBRATION, "-o", repaired)["details"]
    made = {"16 bits": source, "FP8": fp8, "FP8, repaired": repaired}
    return {
        "seconds": round(monotonic() - started),
        **{name: details[name] for name in DETAILS},
        "texts": {
            name: _figures(command, made, text, f"{out}-quality-{number}")
            for number, (name, text) in enumerate(TEXTS.items())
        },
    }


def _figures(command: Command, made: dict[str, str], text: str, out: str) -> dict[str, Any]:
    """Perplexity, and agreement with the 16-bit model, by our names: the report is in the same order."""
    report = command("evaluate", *made.values(), "--data", text, *WINDOWS, "-o", out)
    found = zip(made, report["models"].values(), strict=True)
    return {
        name: {"perplexity": entry["perplexity"], "agreement": entry["agreement"]} for name, entry in found
    }


def quantised_repair_rows(data: dict[str, Any]) -> Rows:
    """Header and rows of the table: each student's three models."""
    rows = []
    for name, student in data["students"].items():
        for model in next(iter(student["texts"].values())):
            cells = []
            for figures in student["texts"].values():
                agreement = figures[model]["agreement"]
                cells.append(f"{figures[model]['perplexity']:,.2f}")
                cells.append("-" if agreement is None else f"{agreement['kl']:.4f}")
            number = f"{student['num_accepted']} of {student['num_accepted'] + student['num_left']}"
            rows.append((name, model, *cells, number if "repaired" in model else "-"))
    columns = [f"{text}: {what}" for text in TEXTS for what in ("perplexity", "KL to 16 bits")]
    return ("student", "weights", *columns, "layers accepted"), rows
