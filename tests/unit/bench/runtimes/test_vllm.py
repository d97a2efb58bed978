"""vLLM as a runtime, on a stand-in for its executable: command lines, reports, failures, leftovers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.report.results import Absent
from bench.report.write import read_results
from bench.runtimes.base import Requests
from bench.runtimes.vllm import Vllm, client_line, read_report, server_line
from compressor.cli.main import invoke
from compressor.core.errors import CompressExportError, ResourceError, UsageError, VerificationError
from tests.tiny_models import make_model, save_checkpoint
from tests.unit.bench.runtimes import stand_in_vllm

REQUESTS = Requests(isl=16, osl=5, concurrency=4, num_requests=120, timeout_s=60)
REPORT: dict[str, Any] = {
    "duration": 4.0,
    "completed": 120,
    "total_input_tokens": 1920,
    "total_output_tokens": 600,
    "request_throughput": 30.0,
    "output_throughput": 150.0,
    "total_token_throughput": 630.0,
    "mean_ttft_ms": 50.0,
    "mean_tpot_ms": 10.0,
    "mean_e2el_ms": 90.0,
    "p99_e2el_ms": 120.0,
}


def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, **changed: Any) -> Any:
    stand_in_vllm.install(tmp_path / "bin", behaviour=behaviour)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "config.json").write_text('{"dtype": "bfloat16"}')
    return Vllm().serve(tmp_path, replace(REQUESTS, **changed), vocab_size=64, seed=0)


def test_a_report_is_read_in_si_units() -> None:
    run = read_report(REPORT, REQUESTS)
    assert (run.duration_s, run.latency_s, run.ttft_s, run.tpot_s) == (4.0, 0.09, 0.05, 0.01)
    assert (run.requests_per_s, run.output_tokens_per_s, run.total_tokens_per_s) == (30.0, 150.0, 630.0)
    assert run.output_tokens_per_s == REPORT["total_output_tokens"] / run.duration_s
    assert run.output_tokens_per_s_per_user == pytest.approx(5 / 0.09)
    assert run.latency_p99_s == 0.12


def test_few_requests_have_no_tail_and_one_token_no_time_between() -> None:
    few = {**REPORT, "completed": 9, "total_input_tokens": 144, "total_output_tokens": 9}
    run = read_report(few, replace(REQUESTS, num_requests=9, osl=1))
    assert isinstance(run.latency_p99_s, Absent)
    assert isinstance(run.tpot_s, Absent)


@pytest.mark.parametrize(
    "changed",
    [{"completed": 119}, {"total_output_tokens": 599}, {"total_input_tokens": 1800}, {"duration": 0.0}],
)
def test_other_work_or_no_number_is_refused(changed: dict[str, float]) -> None:
    with pytest.raises(VerificationError):
        read_report({**REPORT, **changed}, REQUESTS)


def test_server_and_client_agree_on_model_port_and_work(tmp_path: Path) -> None:
    server = server_line(tmp_path, REQUESTS, port=8123, seed=3)
    client = client_line(tmp_path, REQUESTS, port=8123, report=tmp_path / "r.json", seed=3)

    def option(words: list[str], name: str) -> str:
        return words[words.index(name) + 1]

    for name in ("--port", "--served-model-name", "--seed", "--host"):
        assert option(server, name) == option(client, name)
    assert server[2] == option(client, "--model") == str(tmp_path)
    assert option(server, "--max-num-seqs") == option(client, "--max-concurrency") == "4"
    assert (option(client, "--random-input-len"), option(client, "--random-output-len")) == ("16", "5")
    assert option(client, "--num-warmups") == "4"
    assert {"--ignore-eos", "--save-result"} <= set(client)
    assert "--no-enable-prefix-caching" in server


def test_every_process_of_the_server_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = serve(tmp_path, monkeypatch, "starts a worker")
    assert run.output_tokens_per_s == 60.0
    worker = int((tmp_path / "bin" / "worker.pid").read_text())
    assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("behaviour", "error", "sentence"),
    [
        (
            "out of memory",
            ResourceError,
            r"vllm serve ran out of memory\n.*CUDA out of memory. Tried to alloc",
        ),
        ("shared GPU", ResourceError, r"taken by another process\n.*31.44/47.38 GiB"),
        ("answers less", VerificationError, r"'total_output_tokens': 593"),
        (
            "hangs",
            ResourceError,
            r"vllm bench serve did not end in time and was stopped\n.*Waiting for endpoint",
        ),
    ],
)
def test_what_goes_wrong_is_said_in_the_servers_words(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: str,
    error: type[CompressExportError],
    sentence: str,
) -> None:
    with pytest.raises(error, match=sentence):
        serve(tmp_path, monkeypatch, behaviour, timeout_s=1.5 if behaviour == "hangs" else 60)


def test_engines_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="runs no engines"):
        Vllm().check(tmp_path, engine=tmp_path)


def test_the_command_measures_checkpoints_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_vllm.install(tmp_path / "bin", behaviour="is noisy")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    models = [str(save_checkpoint(tmp_path / name, make_model())) for name in ("teacher", "student")]
    words = ["bench", *models, "--runtime", "auto", "--isl-osl", "6/4", "--concurrency", "2"]
    words += ["--num-requests", "4", "--max-pairs", "5", "-o", str(tmp_path / "out")]
    assert invoke(words) == 0
    results = read_results(tmp_path / "out" / "results.json")
    assert {arm.runtime for arm in results.arms} == {"vllm"}
    [cell] = results.comparisons[0].cells
    assert (cell.status, cell.batch_size) == ("NOISY", 2)
    assert cell.speedup is not None
