"""Two tiny ONNX graphs, one smaller than the other, and a scripted stand-in for a session."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.design.arms import Arm, Comparison
from bench.measure.timeline import Timeline
from bench.runtimes.base import Vocabulary
from tests.tiny_models import make_model, save_checkpoint

VOCABULARY = Vocabulary(size=50, special_token_ids=(0, 49))
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
                runtime="onnxruntime-genai",
                num_parameters=model.num_parameters(),
            )
        )
    return Comparison(baseline=arms[0], candidate=arms[1])


@dataclass
class ScriptedSession:
    """Stands in for a loaded model: latencies from a script, every call noted in a shared log."""

    name: str
    latencies_s: Iterator[float]
    log: list[str] = field(default_factory=list)
    vocabulary: Vocabulary = VOCABULARY
    missing_tokens: int = 0

    def generate(self, prompts: Any, *, osl: int) -> Timeline:
        self.log.append(self.name)
        batch_size, isl = prompts.shape
        latency_s = next(self.latencies_s)
        return Timeline(
            start_s=0.0,
            token_times_s=tuple(np.linspace(latency_s / osl, latency_s, osl).tolist()),
            num_input_tokens=(isl,) * batch_size,
            num_output_tokens=(osl - self.missing_tokens,) * batch_size,
        )


@pytest.fixture
def scripted() -> Callable[..., ScriptedSession]:
    """A maker of stand-ins: `scripted("A", latencies, log=...)`."""

    def make(name: str, latencies_s: Iterable[float], **fields: Any) -> ScriptedSession:
        return ScriptedSession(name, iter(latencies_s), **fields)

    return make
