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
from tests.integration.command import succeed_here
from tests.tiny_models import make_model, save_checkpoint

RUN = "run"
EXPORTS = ("huggingface-fp8", "tensorrt-llm", "tensorrt-llm-fp8", "onnx", "onnx-int4")
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
        Made(kind="huggingface", directory=run / "student", source=stages / "recover"),
    ]
    for name in EXPORTS:
        source = stages / ("quantize" if FORMATS[name].needs_fp8 else "recover")
        made.append(Made(kind=name, directory=run / "exports" / name, source=source))
    made += [_rotated(root, teacher, text), *_sparsified(root, teacher, text)]
    return [*made, Made(kind=RUN, directory=run, source=None)]


def _run(root: Path, teacher: Path, text: Path) -> Path:
    tree: dict[str, Any] = {
        "model": str(teacher),
        "dtype": "bfloat16",
        "prune": {"shape": SHAPE},
        "calibration": {"data": str(text), **_CALIBRATION},
        "distill": {"data": str(text), **_TRAINING},
        "repair": {"method": "least-squares"},
        "sparsify": {"pattern": "2:4", "method": "ast"},
        "quantize": {"fp8": True},
        "export": {"formats": ["huggingface", *EXPORTS]},
        "evaluate": {"seq_len": 64, "size": 2},
        "bench": {"enabled": False},
    }
    recipe = root / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    succeed_here("run", "--config", recipe, "-o", root / RUN)
    return root / RUN


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
