"""One artifact of every kind, made by the real tool from a tiny model.

The model has as many key/value heads as query heads, so that q, k and v have one shape and can be
swapped without a header noticing; gate and up have one shape anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from compressor.api.execution import SCRATCH
from compressor.choices.formats import FORMATS
from tests import edge_llm_stand_in
from tests.chat_models import write_chats
from tests.integration.command import succeed_here
from tests.tiny_models import make_model, save_checkpoint

RUN, CHAT, TEXT = "run", "evaluate (chat)", "evaluate (text)"
EDGE, EDGE_FP8 = "tensorrt-edge-llm (2:4)", "tensorrt-edge-llm-fp8 (2:4)"
EXPORTS = (
    *("huggingface-fp8", "tensorrt-llm", "tensorrt-llm-fp8", "onnx", "onnx-int4"),
    *("onnx-standard", "onnx-standard-bf16", "onnx-standard-fp8"),
)
SHAPE = {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 2}
_CALIBRATION = {"size": 4, "seq_len": 32}
_TRAINING = {"tokens": 640, "context_length": 32, "batch_size": 4, "learning_rate": 2e-3}


@dataclass(frozen=True, kw_only=True)
class Made:
    """An artifact of some kind, and what it was made from: None for a run, which knows."""

    kind: str
    directory: Path
    source: Path | None


def make_artifacts(root: Path, text: Path) -> list[Made]:
    """Every kind of artifact, below an empty directory; calibrated and trained on one text."""
    teacher = save_checkpoint(root / "teacher", make_model(num_key_value_heads=4, num_hidden_layers=3))
    run = _run(root, teacher, text)
    stages = run / "stages"
    made = [
        Made(kind="prune", directory=stages / "prune", source=teacher),
        Made(kind="reconstruct", directory=stages / "reconstruct", source=stages / "prune"),
        Made(kind="distill", directory=stages / "distill", source=stages / "reconstruct"),
        Made(kind="sparsify (sparsegpt)", directory=stages / "sparsify", source=stages / "distill"),
        Made(kind="reconstruct (2:4)", directory=stages / "reconstruct-sparse", source=stages / "sparsify"),
        Made(kind="recover (ast)", directory=stages / "recover", source=stages / "reconstruct-sparse"),
        Made(kind="quantize", directory=stages / "quantize", source=stages / "recover"),
        Made(kind="reconstruct (FP8)", directory=stages / "reconstruct-fp8", source=stages / "quantize"),
        Made(kind="huggingface", directory=run / "student", source=stages / "recover"),
    ]
    for name in EXPORTS:
        source = stages / ("reconstruct-fp8" if FORMATS[name].needs_fp8 else "recover")
        made.append(Made(kind=name, directory=run / "exports" / name, source=source))
    made += [_rotated(root, teacher, text), *_sparsified(root, teacher, text), *_edge(root, text)]
    measured = [_text(root, run, text), _chat(root, teacher, run)]
    return [*made, *measured, Made(kind=RUN, directory=run, source=None)]


def _run(root: Path, teacher: Path, text: Path) -> Path:
    tree: dict[str, Any] = {
        "model": str(teacher),
        "dtype": "bfloat16",
        "prune": {"shape": SHAPE},
        "calibration": {"data": str(text), **_CALIBRATION},
        "distill": {"data": str(text), **_TRAINING},
        "repair": {"method": "least-squares", "fp8": True},
        "sparsify": {"pattern": "2:4", "method": "ast"},
        "quantize": {"fp8": True},
        "export": {"formats": ["huggingface", *EXPORTS]},
        "evaluate": {"seq_len": 64, "size": 2},
        "bench": {"runtime": "none"},
    }
    recipe = root / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    succeed_here("run", "--config", recipe, "-o", root / RUN)
    return root / RUN


def _edge(root: Path, text: Path) -> list[Made]:
    """A 2:4 student with heads of a size that has kernels there, exported by the converter's stand-in."""
    fields = {"head_dim": 64, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2}
    model = save_checkpoint(root / "edge-model", make_model(**fields).bfloat16())
    python = edge_llm_stand_in.install(root / "edge-environment")
    calibration = ("--calib-data", text, "--calib-size", 4, "--calib-seq-len", 32)
    sparse, fp8 = root / "edge-sparse", root / "edge-fp8"
    succeed_here("sparsify", model, *calibration, "--sparsity-method", "wanda", "-o", sparse)
    succeed_here("quantize", sparse, *calibration, "--fp8", "-o", fp8)
    made = []
    for kind, source, precision in ((EDGE, sparse, "fp16"), (EDGE_FP8, fp8, "fp8")):
        out = root / f"edge-{precision}-export"
        form = ("--format", "tensorrt-edge-llm", "--precision", precision, "--edge-llm-python", python)
        succeed_here("export", source, *form, "-o", out)
        made.append(Made(kind=kind, directory=out, source=source))
    return made


def _text(root: Path, run: Path, text: Path) -> Made:
    """Perplexity of the run's student and of its int4 graph."""
    words = ("--data", text, "--seq-len", 32, "--size", 4)
    models = (run / "student", run / "exports" / "onnx-int4")
    succeed_here("evaluate", *models, *words, "-o", root / "text")
    return Made(kind=TEXT, directory=root / "text", source=None)


def _chat(root: Path, teacher: Path, run: Path) -> Made:
    """Chat quality of the run's teacher and student."""
    chats = ("--chat-data", write_chats(root / "chats.jsonl"), "--chat-max-tokens", 12)
    succeed_here("evaluate", teacher, run / "student", *chats, "-o", root / "chat")
    return Made(kind=CHAT, directory=root / "chat", source=None)


def _rotated(root: Path, teacher: Path, text: Path) -> Made:
    """A student whose hidden size was reduced by rotation."""
    shape = ",".join(f"{name}={size}" for name, size in SHAPE.items())
    calibration = ("--calib-data", text, "--calib-size", 4, "--calib-seq-len", 32, "--importance", "random")
    out = root / "rotated"
    succeed_here("prune", teacher, "--shape", shape, "--hidden-removal", "rotation", *calibration, "-o", out)
    return Made(kind="prune (rotation)", directory=out, source=teacher)


def _sparsified(root: Path, teacher: Path, text: Path) -> list[Made]:
    """A method that only chooses masks, and low-rank branches, fixed and trained."""
    calibration = ("--calib-data", text, "--calib-size", 4, "--calib-seq-len", 32, "--dtype", "float32")
    training = ("--train-data", text, "--tokens", 640, "--context-length", 32)
    wanda, fixed, trained = root / "wanda", root / "fixed", root / "trained"
    common = ("sparsify", teacher, *calibration)
    succeed_here(*common, "--sparsity-method", "wanda", "-o", wanda)
    succeed_here(*common, "--sparsity-method", "magnitude", "--slorb", "fixed", "-o", fixed)
    succeed_here(*common, "--sparsity-method", "ast", "--slorb", "trained", *training, "-o", trained)
    return [
        Made(kind="sparsify (wanda)", directory=wanda, source=teacher),
        Made(kind="adapter, fixed", directory=fixed, source=teacher),
        Made(kind="adapter, trained", directory=trained, source=root / SCRATCH / "trained-one-shot"),
    ]
