"""Two processes over gloo share the calibration sequences, and find what one finds by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.command import succeed_here
from tests.integration.test_distributed import torchrun
from tests.tiny_models import make_model, save_checkpoint

CASES: dict[str, tuple[tuple[str, ...], float]] = {
    # Three sequences for two processes; sums over sequences are float64.
    "activation": (("--calib-size", "3", "--depth-importance", "task"), 1e-12),
    # One sequence, so the second process has none; gradients are float32.
    "taylor": (("--calib-size", "1", "--depth-importance", "loss", "--depth-removal", "scattered"), 1e-4),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("model") / "m", make_model(num_hidden_layers=4))


@pytest.mark.parametrize("importance", CASES)
def test_two_processes_find_what_one_finds(
    importance: str, model: Path, tiny_text: Path, tmp_path: Path
) -> None:
    options, tolerance = CASES[importance]
    if "task" in options:
        rows = [
            {"question": f"The {word} is", "choices": ["wet", "dry", "old"], "answer": 1} for word in "abc"
        ]
        task = tmp_path / "task.jsonl"
        task.write_text("\n".join(map(json.dumps, rows)))
        options = (*options, "--depth-task", str(task))
    words = (
        *("prune", str(model), "--shape", "num_hidden_layers=2,intermediate_size=128", "--dtype", "float32"),
        *(
            "--calib-data",
            str(tiny_text),
            "--calib-seq-len",
            "32",
            "--importance",
            importance,
            *options,
            "-q",
        ),
    )
    succeed_here(*words, "-o", str(tmp_path / "one"))
    torchrun("compressor.cli.main", *words, "-o", str(tmp_path / "two"), processes=2)

    one, two = (load_file(tmp_path / name / "importance.safetensors") for name in ("one", "two"))
    for name, scores in one.items():
        torch.testing.assert_close(two[name], scores, rtol=tolerance, atol=tolerance)
    one_depth, two_depth = (
        json.loads((tmp_path / name / "depth.json").read_text()) for name in ("one", "two")
    )
    assert figures(two_depth) == pytest.approx(figures(one_depth), rel=1e-12)
    plans = [(tmp_path / name / "prune_plan.json").read_text() for name in ("one", "two")]
    assert plans[0] == plans[1]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    inputs = [
        json.loads((tmp_path / name / "artifact.json").read_text())["inputs"] for name in ("one", "two")
    ]
    assert inputs[0] == inputs[1]


def figures(record: Any) -> list[float]:
    """All numbers of a record, in order."""
    if isinstance(record, dict):
        return [number for value in record.values() for number in figures(value)]
    if isinstance(record, list):
        return [number for value in record for number in figures(value)]
    return [float(record)] if isinstance(record, (int, float)) else []
