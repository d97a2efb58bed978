"""A student beside models of its own size: its shape trained from scratch, on the same tokens and on more.

What pruning and repair are worth is what a model of random weights does not reach by the same training. No
other public model of this size is at hand without a hub.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

from tests.performance.student_results import FITTED, MODEL, QUALITY, TEXT, WINDOWS, Command, Rows

TOKENS = 20_480
# A model of random weights bears a larger rate than a repaired one: 1e-3 is what trains it fastest here.
RATES = {"pruned and repaired": "5e-4", "from scratch": "1e-3"}
TRAINING = ("--train-data", TEXT, "--context-length", "512", "--train-batch-size", "1")


def run_baseline(command: Command) -> dict[str, Any]:
    """Perplexities of both students, before and after the same distillation."""
    with tempfile.TemporaryDirectory() as name:
        scratch, seconds = Path(name), {}
        cut = command("prune", MODEL, "--target", "80m", *FITTED, "-o", str(scratch / "cut"))
        repaired = str(scratch / "repaired")
        command("reconstruct", cut["path"], "--teacher", MODEL, *FITTED, "-o", repaired)
        starts = {
            "pruned and repaired": repaired,
            "from scratch": str(random_weights(Path(cut["path"]), scratch / "random")),
        }
        made: dict[str, str] = {}
        for student, start in starts.items():
            started = monotonic()
            out = str(scratch / f"distilled-{len(made)}")
            words = (*TRAINING, "--tokens", str(TOKENS), "--learning-rate", RATES[student])
            command("distill", start, "--teacher", MODEL, *words, "-o", out)
            made |= {f"{student}, before": start, student: out}
            seconds[student] = round(monotonic() - started)
        found: dict[str, dict[str, float]] = {label: {} for label in made}
        for number, (text, source) in enumerate(QUALITY.items()):
            out = str(scratch / f"quality-{number}")
            report = command("evaluate", *made.values(), "--data", source, *WINDOWS, "-o", out)
            for label, entry in zip(made, report["models"].values(), strict=True):
                found[label][text] = entry["perplexity"]
    return {
        "num_parameters": cut["num_parameters"],
        "tokens": TOKENS,
        "learning_rates": RATES,
        "perplexity": found,
        "seconds": seconds,
    }


def random_weights(student: Path, out: Path) -> Path:
    """A checkpoint of a student's shape with the weights that transformers starts a training from."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(student), dtype=torch.bfloat16)
    model.save_pretrained(out)
    for file in student.glob("*token*"):
        shutil.copyfile(file, out / file.name)
    for file in student.glob("chat_template*"):
        shutil.copyfile(file, out / file.name)
    return out


def baseline_rows(data: dict[str, Any]) -> Rows:
    """Header and rows of the table."""
    columns = (f"{text}: {when}" for text in QUALITY for when in ("start", "distilled"))
    header = ("model of this shape", *columns)
    rows = [
        (
            student,
            *(
                f"{data['perplexity'][label][text]:,.1f}"
                for text in QUALITY
                for label in (f"{student}, before", student)
            ),
        )
        for student in data["learning_rates"]
    ]
    return header, rows
