"""TensorRT-Edge-LLM as a runtime, on a stand-in for its benchmark: command lines, CSV files, failures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.report.results import Absent
from bench.runtimes.base import Requests, ServingRun
from bench.runtimes.edge_llm import EdgeLlm, command_line, read_rows
from compressor.core.errors import CompressExportError, ResourceError, UsageError, VerificationError
from compressor.runs.artifact import ModelArtifact
from tests.unit.bench.runtimes import stand_in_llm_bench

REQUESTS = Requests(isl=100, osl=11, concurrency=4, num_requests=10, timeout_s=60)
PREFILL = {"mode": "prefill", "batch_size": "4", "osl": "1", "e2e_time_ms": "50.0000", "input_len": "100"}
DECODE = {"mode": "decode", "batch_size": "4", "osl": "11", "e2e_time_ms": "150.0", "past_kv_len": "100"}


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """The engine of an FP8 export."""
    directory = tmp_path / "export" / "engine"
    directory.mkdir(parents=True)
    (directory / "llm.engine").write_bytes(b"engine")
    stage = "export-tensorrt-edge-llm-fp8"
    ModelArtifact(
        path=directory.parent, stage=stage, fingerprint="0" * 64, lineage=(stage,), num_parameters=1
    ).write()
    return directory


def serve(
    engine: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, *, exact_ms: float = 0.0, **changed: Any
) -> ServingRun:
    tools = engine.parents[1] / "bin"
    stand_in_llm_bench.install(tools, behaviour=behaviour, exact_ms=exact_ms)
    monkeypatch.setenv("PATH", str(tools))
    asked = replace(REQUESTS, **changed)
    return EdgeLlm().serve(engine.parent, asked, vocab_size=64, seed=3, engine=engine)


def test_prompt_and_output_make_one_run_in_si_units() -> None:
    run = read_rows({"prefill": PREFILL, "decode": DECODE}, REQUESTS)
    assert (run.duration_s, run.latency_s) == (pytest.approx(0.2), pytest.approx(0.2))
    assert (run.ttft_s, run.tpot_s) == (0.05, pytest.approx(0.015))
    assert run.output_tokens_per_s == pytest.approx(4 * 11 / 0.2)
    assert run.total_tokens_per_s == pytest.approx(4 * 111 / 0.2)
    assert run.requests_per_s == pytest.approx(20)
    assert isinstance(run.latency_p99_s, Absent)


@pytest.mark.parametrize(
    "changed",
    [
        {"batch_size": "2"},
        {"past_kv_len": "99"},
        {"osl": "10"},
        {"e2e_time_ms": "-1"},
        {"e2e_time_ms": "nan"},
        {"e2e_time_ms": None},
        {"mode": "prefill"},
    ],
)
def test_other_work_or_no_time_is_refused(changed: dict[str, str]) -> None:
    with pytest.raises(VerificationError):
        read_rows({"prefill": PREFILL, "decode": {**DECODE, **changed}}, REQUESTS)


def test_two_calls_name_engine_lengths_and_batches(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = serve(engine, monkeypatch, "measures", exact_ms=100)
    assert (run.duration_s, run.ttft_s, run.tpot_s) == (0.2, 0.1, 0.01)
    lines = (engine.parents[1] / "bin" / "calls.jsonl").read_text().splitlines()
    calls = [dict(zip(words[::2], words[1::2], strict=True)) for words in map(json.loads, lines)]
    common = {"--engineDir": str(engine), "--batchSize": "4", "--iterations": "3", "--seed": "3"}
    assert [call.items() >= common.items() for call in calls] == [True, True]
    assert (calls[0]["--mode"], calls[0]["--inputLen"]) == ("prefill", "100")
    assert (calls[1]["--mode"], calls[1]["--pastKVLen"], calls[1]["--osl"]) == ("decode", "100", "11")


def test_one_output_token_comes_with_the_prompt(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = serve(engine, monkeypatch, "measures", exact_ms=100, osl=1)
    assert (run.duration_s, isinstance(run.tpot_s, Absent)) == (0.1, True)


def test_all_requests_are_measured_in_whole_batches() -> None:
    words = command_line(Path("engine"), REQUESTS, mode="decode", out=Path("out"), seed=2**40 + 5)
    option = dict(zip(words[1::2], words[2::2], strict=True))
    assert (option["--iterations"], option["--seed"]) == ("3", "5")


@pytest.mark.parametrize(
    ("behaviour", "error", "sentence"),
    [
        ("out of memory", ResourceError, "out of memory"),
        ("answers less", VerificationError, "did not do the requested work"),
        ("writes nothing", ResourceError, "llm_bench failed"),
        ("hangs", ResourceError, "did not end in time and was stopped"),
    ],
)
def test_what_goes_wrong_is_said(
    engine: Path,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: str,
    error: type[CompressExportError],
    sentence: str,
) -> None:
    with pytest.raises(error, match=sentence):
        serve(engine, monkeypatch, behaviour, timeout_s=1.5 if behaviour == "hangs" else 60)


def test_a_checkpoint_and_another_engine_are_refused(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert EdgeLlm().stored_precision(engine) == "fp8"
    with pytest.raises(UsageError, match="runs engines, not checkpoints"):
        EdgeLlm().check(engine.parent)
    (engine / "llm.engine").unlink()
    with pytest.raises(UsageError, match="holds no engine"):
        EdgeLlm().check(engine.parent, engine=engine)
    with pytest.raises(UsageError, match="not written by a stage"):
        EdgeLlm().stored_precision(engine.parents[1] / "elsewhere" / "engine")
