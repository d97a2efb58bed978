from __future__ import annotations

import builtins
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.arms import Comparison
from bench.grid import Cell
from bench.prompts import make_prompts
from bench.runtimes.base import RUNTIMES, Session, runtime_named
from bench.timeline import verify_timeline
from compressor.errors import DependencyError, UsageError
from tests.tiny_models import BOS_ID, EOS_ID, PAD_ID, VOCAB_SIZE

GENAI = runtime_named("onnxruntime-genai")


@pytest.fixture(scope="module")
def session(comparison: Comparison) -> Session:
    return GENAI.load(comparison.baseline.path, precision="fp32")


def test_the_session_knows_its_vocabulary(session: Session) -> None:
    assert session.vocab_size == VOCAB_SIZE
    assert {BOS_ID, EOS_ID, PAD_ID} <= session.special_token_ids


@pytest.mark.parametrize("cell", [Cell(1, 1, 1), Cell(5, 7, 1), Cell(6, 20, 3)])
def test_exactly_the_requested_tokens_are_read_and_written(session: Session, cell: Cell) -> None:
    timeline = session.generate(make_prompts((session,), cell=cell, seed=0), osl=cell.osl)
    verify_timeline(timeline, cell)
    times = (timeline.start_s, *timeline.token_times_s)
    assert all(before < after for before, after in itertools.pairwise(times))


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
    assert list(RUNTIMES) == ["onnxruntime-genai", "torch-eager"]
    with pytest.raises(UsageError, match="did you mean onnxruntime-genai"):
        runtime_named("onnxruntime")
