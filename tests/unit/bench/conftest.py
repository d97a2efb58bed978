"""Two tiny ONNX graphs, one smaller than the other."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from bench.design.arms import Arm, Comparison
from tests.tiny_models import make_model, save_checkpoint

CONTEXT_LENGTH = 64  # short, so that a cell can be too long for it


def build_graph(checkpoint: Path, graph: Path) -> Path:
    """An ONNX Runtime GenAI directory in fp32, made by the library's own command, in this process."""
    options = {"-m": checkpoint, "-o": graph, "-p": "fp32", "-e": "cpu", "-c": graph.parent / "cache"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["builder", *(str(part) for option in options.items() for part in option)])
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)
    return graph


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A tiny teacher and its smaller student, ready to run; not to be changed."""
    root = tmp_path_factory.mktemp("graphs")
    arms = []
    for name, num_hidden_layers in (("teacher", 3), ("student", 2)):
        model = make_model(num_hidden_layers=num_hidden_layers, max_position_embeddings=CONTEXT_LENGTH)
        save_checkpoint(root / f"{name}-hf", model)
        arms.append(
            Arm(
                id=f"{name}-fp32",
                model=name,
                precision="fp32",
                path=build_graph(root / f"{name}-hf", root / name),
                runtime="onnxruntime",
                num_parameters=model.num_parameters(),
            )
        )
    return Comparison(baseline=arms[0], candidate=arms[1])
