from __future__ import annotations

import builtins
import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.design.arms import Comparison
from bench.design.grid import Cell
from bench.design.prompts import make_prompts
from bench.measure.timeline import verify_timeline
from bench.runtimes.base import Session, StaticRuntime
from bench.runtimes.onnxruntime_genai import OnnxRuntimeGenaiSession
from compressor.choices.runtimes import RUNTIMES, runtime_named
from compressor.core.errors import DependencyError, UsageError
from tests.tiny_models import BOS_ID, EOS_ID, PAD_ID, VOCAB_SIZE

GENAI: StaticRuntime = runtime_named("onnxruntime").load()


@pytest.fixture(scope="module")
def session(comparison: Comparison) -> Session:
    return GENAI.load(comparison.baseline.path, precision="fp32")


def test_the_session_knows_its_vocabulary(session: Session) -> None:
    assert session.vocabulary.size == VOCAB_SIZE
    assert {BOS_ID, EOS_ID, PAD_ID} <= set(session.vocabulary.special_token_ids)


@pytest.mark.parametrize("cell", [Cell(1, 1, 1), Cell(5, 7, 1), Cell(6, 20, 3)])
def test_exactly_the_requested_tokens_are_read_and_written(session: Session, cell: Cell) -> None:
    timeline = session.generate(make_prompts((session.vocabulary,), cell=cell, seed=0), osl=cell.osl)
    verify_timeline(timeline, cell)
    times = (timeline.start_s, *timeline.token_times_s)
    assert all(before < after for before, after in itertools.pairwise(times))


@pytest.mark.parametrize(
    ("providers", "num_gpus"), [([], 0), ([{"cuda": {"enable_cuda_graph": "0"}}], 1), ([{"dml": {}}], 0)]
)
def test_a_graph_built_for_cuda_counts_its_gpu(
    tmp_path: Path, providers: list[dict[str, Any]], num_gpus: int
) -> None:
    decoder = {"session_options": {"provider_options": providers}}
    config = {"model": {"vocab_size": 9, "eos_token_id": 2, "decoder": decoder}}
    (tmp_path / "genai_config.json").write_text(json.dumps(config))

    class Generator:
        def __init__(self, *_arguments: object) -> None:
            self._tokens: list[int] = []

        def append_tokens(self, prompts: Any) -> None:
            self._tokens += prompts[0].tolist()

        def is_done(self) -> bool:
            return len(self._tokens) == 5

        def generate_next_token(self) -> None:
            self._tokens.append(1)

        def get_sequence(self, _index: int) -> list[int]:
            return self._tokens

    parameters = SimpleNamespace(set_search_options=lambda **_options: None)
    library = SimpleNamespace(Model=str, GeneratorParams=lambda _model: parameters, Generator=Generator)
    session = OnnxRuntimeGenaiSession(library, tmp_path)
    timeline = verify_timeline(session.generate(np.ones((1, 3), dtype=np.int32), osl=2), Cell(3, 2, 1))
    assert timeline.num_gpus == num_gpus


def test_a_cell_beyond_the_context_is_the_runtimes_error(session: Session) -> None:
    with pytest.raises(RuntimeError, match="context_length"):
        session.generate(np.ones((1, 60), dtype=np.int32), osl=60)


def test_a_directory_of_another_kind_is_refused(tmp_path: Path) -> None:
    for method in (GENAI.check, GENAI.load):
        with pytest.raises(UsageError, match=r"genai_config\.json"):
            method(tmp_path, precision="fp32")


def test_a_missing_library_is_named(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "onnxruntime_genai":
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DependencyError, match="pip install onnxruntime-genai"):
        GENAI.check(comparison.baseline.path, precision="fp32")


def test_the_library_is_kept_from_sending_telemetry(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    GENAI.check(comparison.baseline.path, precision="fp32")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_the_table_of_runtimes_is_frozen_here() -> None:
    assert list(RUNTIMES) == ["tensorrt-llm", "vllm", "tensorrt-edge-llm", "torch", "onnxruntime"]
    with pytest.raises(UsageError, match="did you mean onnxruntime"):
        runtime_named("onnxruntime-genai")
