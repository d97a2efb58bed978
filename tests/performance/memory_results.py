"""The memory that a plan predicts of every stage beside what the run measured, for two sizes of model.

Short trainings and few sequences: what a stage holds hangs on shapes and lengths, not on how many there are.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from compressor.models.config.portable import make_portable
from compressor.models.source import open_checkpoint, resolve_source
from compressor.models.tokenizer_files import copy_tokenizer
from tests.performance.kept import place_of
from tests.performance.student_results import MODEL, TEXT, Command, Rows
from tests.tiny_models import make_model

TOLERANCE = 0.25
MIB = 1 << 20
# A third of SmolLM2's parameters, most of them in the embedding, which has SmolLM2's vocabulary.
SMALLER = {
    "vocab_size": 49152,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
WORDS = (
    *("--target", "60%", "--calib-data", TEXT, "--calib-size", "4", "--calib-seq-len", "256"),
    *("--train-data", TEXT, "--tokens", "512", "--context-length", "256", "--train-batch-size", "1", "--fp8"),
    *("--formats", "huggingface,huggingface-fp8,tensorrt-llm-fp16,onnx,onnx-int4"),
    *("--eval-seq-len", "256", "--eval-size", "2", "--runtime", "none", "--preflight", "off"),
)


def run_memory(command: Command) -> dict[str, Any]:
    """Predicted and measured bytes of every stage of both runs."""
    place = place_of("memory")
    models = {"SmolLM2-135M": MODEL, "random Llama": str(_random_model(place / "random"))}
    runs = {}
    for name, model in models.items():
        summary = command("run", model, *WORDS, "-o", str(place / Path(model).stem / "run"))
        runs[name] = {
            "num_parameters": summary["plan"]["teacher"]["num_parameters"],
            "student": summary["plan"]["student"]["num_parameters"],
            "stages": {
                Path(where).name: {
                    "predicted": summary["plan"]["memory_bytes"][Path(where).name],
                    "measured": entry["peak_memory_bytes"],
                }
                for where, entry in summary["stages"].items()
            },
        }
    return {"runs": runs, "command": " ".join(WORDS), "tolerance": TOLERANCE}


def _random_model(directory: Path) -> Path:
    """A model of random weights in 16 bits, with SmolLM2's tokenizer."""
    if not (directory / "config.json").is_file():
        directory.mkdir(parents=True, exist_ok=True)
        scratch = directory.with_name("tokenizer")
        source = open_checkpoint(resolve_source(MODEL), scratch, dtype="bfloat16")
        make_model(**SMALLER).bfloat16().save_pretrained(directory)
        copy_tokenizer(source.path, directory)
        make_portable(directory)
        shutil.rmtree(scratch)
    return directory


def memory_rows(data: dict[str, Any]) -> Rows:
    """Header and rows of the table; what is outside of the tolerance says so."""
    header = ("model", "stage", "predicted", "measured", "predicted : measured", f"within {TOLERANCE:.0%}")
    rows = []
    for name, run in data["runs"].items():
        for stage, found in run["stages"].items():
            ratio = found["predicted"] / found["measured"]
            reached = "yes" if abs(ratio - 1) <= data["tolerance"] else "no"
            sizes = (f"{found[kind] / MIB:,.0f} MiB" for kind in ("predicted", "measured"))
            model = f"{name}, {run['num_parameters'] / 1e6:.0f}M to {run['student'] / 1e6:.0f}M"
            rows.append((model, stage, *sizes, f"{ratio:.2f}", reached))
    return header, rows
