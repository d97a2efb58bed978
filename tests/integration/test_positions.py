"""Sequences beyond the positions that a model declares: every stage that reads them says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.integration.command import command_here
from tests.tiny_models import edit_json

CALIBRATED = ("--calib-data", "TEXT", "--calib-size", "1", "--calib-seq-len")
READING = {
    "prune": ("prune", "MODEL", "--shape", "intermediate_size=64", *CALIBRATED),
    "sparsify": ("sparsify", "MODEL", *CALIBRATED),
    "quantize": ("quantize", "MODEL", "--fp8", *CALIBRATED),
    "distill": (
        *("distill", "MODEL", "--teacher", "MODEL", "--train-data", "TEXT", "--tokens", "128"),
        *("--train-batch-size", "1", "--context-length"),
    ),
    "evaluate": ("evaluate", "MODEL", "--data", "TEXT", "--size", "1", "--seq-len"),
}


@pytest.mark.parametrize("stage", READING)
@pytest.mark.parametrize(("num_tokens", "warned"), [(64, False), (128, True)])
def test_sequences_beyond_the_positions_are_warned_of(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path, stage: str, num_tokens: int, warned: bool
) -> None:
    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    edit_json(model / "config.json", max_position_embeddings=64)
    known = {"MODEL": model, "TEXT": tiny_text}
    words = [known.get(word, word) for word in READING[stage]]
    done = command_here(*words, num_tokens, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    said = "128 tokens are longer than the 64 positions" in " ".join(done.stderr.split())
    assert said == warned
