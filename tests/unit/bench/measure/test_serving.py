"""The concurrency experiment, on a stand-in for `trtllm-bench` that writes reports of its shape."""

from __future__ import annotations

import json
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.design.arms import Arm, Comparison
from bench.measure.serving import loads_of, run_serving
from bench.report.html import render_html
from bench.report.markdown import render_markdown
from bench.report.results import Absent, Summary
from bench.report.write import read_results
from bench.runtimes.base import Requests
from bench.runtimes.tensorrt_llm import TensorrtLlm, command_line, read_report, write_dataset
from compressor.cli.main import invoke
from compressor.core.console import Console
from compressor.core.errors import (
    DependencyError,
    ResourceError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from compressor.models.presets import PRESETS
from compressor.recipe.recipe import Bench
from tests.tiny_models import make_model, save_checkpoint
from tests.unit.bench.runtimes import stand_in_trtllm_bench

REQUESTS = Requests(isl=6, osl=4, concurrency=2, num_requests=100)
REPORT: dict[str, Any] = {
    "request_info": {"num_requests": 100, "avg_input_length": 6.0, "avg_output_length": 4.0},
    "performance": {
        "total_latency_ms": 2000.0,
        "avg_request_latency_ms": 40.0,
        "request_throughput_req_s": 50.0,
        "system_output_throughput_tok_s": 200.0,
        "system_total_throughput_tok_s": 500.0,
        "output_throughput_per_user_tok_s": 100.0,
        "output_throughput_per_gpu_tok_s": 200.0,
        "request_latency_percentiles_ms": {"p50": 39.0, "p90": 44.0, "p95": 45.0, "p99": 50.0},
    },
    "streaming_metrics": {"avg_ttft_ms": 10.0, "avg_tpot_ms": 10.0},
}
# One request of 64 tokens in and 16 out: keys and figures as published for a run of TensorRT-LLM 1.3.0rc12
# on an NVIDIA GB10, abridged. It was not recorded by this project.
PUBLISHED_REPORT: dict[str, Any] = {
    "request_info": {"num_requests": 1, "avg_input_length": 64.0, "avg_output_length": 16.0},
    "performance": {
        "total_latency_ms": 4743.5,
        "avg_request_latency_ms": 4743.5,
        "request_throughput_req_s": 0.21,
        "system_output_throughput_tok_s": 3.37,
        "system_total_throughput_tok_s": 16.86,
        "output_throughput_per_user_tok_s": 3.37,
        "output_throughput_per_gpu_tok_s": 3.37,
        "request_latency_percentiles_ms": {"p50": 4743.5, "p90": 4743.5, "p95": 4743.5, "p99": 4743.5},
    },
    "streaming_metrics": {"token_output_speed_tok_s": 71.29, "avg_ttft_ms": 4533.1, "avg_tpot_ms": 14.03},
}
# Reads the data set and the options it was given; a model called "student" is twice as fast.
STAND_IN = """#!{python}
import json, pathlib, sys
words = sys.argv[1:]
option = lambda name: words[words.index(name) + 1]
if option("--model") == "broken":
    sys.exit("out of memory in " + option("--model_path"))
lines = [json.loads(line) for line in pathlib.Path(option("--dataset")).read_text().splitlines()]
report = json.loads({report!r})
faster = 2.0 if option("--model") == "student" else 1.0
for key in report["performance"]:
    if key.endswith("_tok_s"):
        report["performance"][key] *= faster
report["request_info"] = dict(
    num_requests=len(lines),
    avg_input_length=sum(len(line["input_ids"]) for line in lines) / len(lines),
    avg_output_length=sum(line["output_tokens"] for line in lines) / len(lines),
)
pathlib.Path(option("--report_json")).write_text(json.dumps(report))
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An executable of this name on PATH that is not NVIDIA's."""
    file = tmp_path / "bin" / "trtllm-bench"
    file.parent.mkdir()
    file.write_text(STAND_IN.format(python=sys.executable, report=json.dumps(REPORT)))
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(file.parent))
    return file


def make_arm(root: Path, model: str) -> Arm:
    path = root / model
    path.mkdir()
    (path / "config.json").write_text("{}")
    return Arm(
        id=f"{model}-bf16",
        model=model,
        precision="bf16",
        path=path,
        runtime="tensorrt-llm",
        num_parameters=1,
        dims=PRESETS["smollm2-135m"].dims,
    )


def test_a_published_report_is_read_and_obeys_our_definitions() -> None:
    requests = Requests(isl=64, osl=16, concurrency=1, num_requests=1)
    run = read_report(PUBLISHED_REPORT, requests)
    assert isinstance(run.ttft_s, float)
    assert isinstance(run.tpot_s, float)
    assert run.ttft_s + (requests.osl - 1) * run.tpot_s == pytest.approx(run.latency_s, rel=1e-4)
    # The rates are published to two decimals.
    assert run.output_tokens_per_s == pytest.approx(requests.osl / run.duration_s, abs=0.005)
    assert run.total_tokens_per_s == pytest.approx((requests.isl + requests.osl) / run.duration_s, abs=0.01)
    assert run.requests_per_s == pytest.approx(1 / run.duration_s, abs=0.005)
    assert isinstance(run.latency_p99_s, Absent)


def test_reports_are_read_in_si_units() -> None:
    run = read_report(REPORT, REQUESTS)
    assert (run.duration_s, run.latency_s, run.ttft_s, run.tpot_s) == (2.0, 0.04, 0.01, 0.01)
    assert (run.output_tokens_per_s, run.total_tokens_per_s, run.requests_per_s) == (200.0, 500.0, 50.0)
    assert (run.output_tokens_per_s_per_user, run.output_tokens_per_s_per_gpu) == (100.0, 200.0)
    assert run.latency_p99_s == 0.05


def test_too_few_requests_have_no_tail_and_no_streaming_no_first_token() -> None:
    few = {
        "request_info": {**REPORT["request_info"], "num_requests": 99},
        "performance": REPORT["performance"],
    }
    run = read_report(few, replace(REQUESTS, num_requests=99))
    assert all(isinstance(value, Absent) for value in (run.latency_p99_s, run.ttft_s, run.tpot_s))


@pytest.mark.parametrize("changed", [{"num_requests": 99}, {"avg_input_length": 5}, {"avg_output_length": 5}])
def test_other_work_than_requested_is_refused(changed: dict[str, int]) -> None:
    report = {**REPORT, "request_info": {**REPORT["request_info"], **changed}}
    with pytest.raises(VerificationError, match="requested work"):
        read_report(report, REQUESTS)


def test_a_report_without_a_key_is_refused_by_name() -> None:
    report = {**REPORT, "performance": {}}
    with pytest.raises(VerificationError, match="total_latency_ms"):
        read_report(report, REQUESTS)


def test_engines_and_checkpoints_take_their_own_backend(tmp_path: Path) -> None:
    files = {"dataset": tmp_path / "d", "report": tmp_path / "r"}
    checkpoint = command_line(tmp_path, REQUESTS, **files)
    engine = command_line(tmp_path, REQUESTS, engine=tmp_path / "engine", **files)
    assert checkpoint[checkpoint.index("--backend") + 1] == "pytorch"
    assert engine[engine.index("--backend") + 1] == "tensorrt"
    assert engine[engine.index("--engine_dir") + 1] == str(tmp_path / "engine")
    for words in (checkpoint, engine):
        assert words[words.index("--model_path") + 1] == str(tmp_path)
        assert {"--streaming", "--concurrency", "--num_requests", "--report_json"} <= set(words)
        assert words[words.index("--warmup") + 1] == "2"
    busy = command_line(tmp_path, replace(REQUESTS, concurrency=64), **files)
    assert busy[busy.index("--warmup") + 1] == "64"


def test_one_output_token_has_no_time_between_tokens() -> None:
    info = {**REPORT["request_info"], "avg_output_length": 1}
    report = {**REPORT, "request_info": info, "streaming_metrics": {"avg_ttft_ms": 10.0, "avg_tpot_ms": 0.0}}
    assert isinstance(read_report(report, replace(REQUESTS, osl=1)).tpot_s, Absent)


@pytest.mark.parametrize(
    ("config", "quantisation", "expected"),
    [
        ({"dtype": "bfloat16"}, None, "bf16"),
        ({"torch_dtype": "float16"}, None, "fp16"),
        ({"dtype": "bfloat16"}, {"quantization": {"quant_algo": "FP8"}}, "fp8"),
        ({"pretrained_config": {"dtype": "float16", "quantization": {"quant_algo": None}}}, None, "fp16"),
        ({"pretrained_config": {"dtype": "float16", "quantization": {"quant_algo": "FP8"}}}, None, "fp8"),
    ],
)
def test_the_precision_is_that_of_the_files(
    tmp_path: Path, config: dict[str, Any], quantisation: dict[str, Any] | None, expected: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if quantisation:
        (tmp_path / "hf_quant_config.json").write_text(json.dumps(quantisation))
    assert TensorrtLlm().stored_precision(tmp_path) == expected


def test_a_precision_without_a_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"pretrained_config": {"quantization": {"quant_algo": "W4A16"}}})
    )
    with pytest.raises(UnsupportedError, match="W4A16"):
        TensorrtLlm().stored_precision(tmp_path)


def make_engine(directory: Path) -> Path:
    """What the benchmark looks at: a config and a file of that name."""
    directory.mkdir(parents=True)
    config = {"pretrained_config": {"dtype": "bfloat16", "quantization": {"quant_algo": "FP8"}}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "rank0.engine").write_bytes(b"plan")
    return directory


def test_the_command_measures_engines_in_flight(tmp_path: Path, stand_in: Path) -> None:
    models = [save_checkpoint(tmp_path / name, make_model()) for name in ("teacher", "student")]
    engines = [make_engine(tmp_path / name / "engine") for name in ("teacher", "student")]
    words = ["bench", *map(str, models), "--runtime", "tensorrt-llm", "--isl-osl", "6/4"]
    words += ["--concurrency", "2", "--num-requests", "20", "-o", str(tmp_path / "out")]
    given = [word for engine in engines for word in ("--engine", str(engine))]
    assert invoke([*words, *given]) == 0
    results = read_results(tmp_path / "out" / "results.json")
    assert [arm.id for arm in results.arms] == ["teacher-fp8", "student-fp8"]
    assert [arm.engine_bytes for arm in results.arms] == [4, 4]
    assert results.comparisons[0].cells[0].status == "ok"
    assert invoke([*words, *given[:2], "--overwrite"]) == 2
    assert invoke([*words, *given, "--precision", "bf16", "--overwrite"]) == 2


@pytest.mark.parametrize(
    ("config", "of_two_models", "of_one"),
    [
        (Bench(preset="quick"), [(1, 1), (8, 8)], [(1, 1), (8, 8)]),
        (
            Bench(isl_osl=((128, 128),), concurrency="1,4:8"),  # type: ignore[arg-type]
            [(1, 1), (4, 8)],
            [(1, 1), (4, 4), (8, 8)],
        ),
    ],
)
def test_both_models_have_their_requests_in_flight(
    tmp_path: Path, config: Bench, of_two_models: list[object], of_one: list[object]
) -> None:
    teacher, student = (make_arm(tmp_path, model) for model in ("teacher", "student"))
    for candidate, expected in ((student, of_two_models), (replace(teacher, id="other"), of_one)):
        loads = loads_of(Comparison(baseline=teacher, candidate=candidate), config)
        assert [(load.baseline.concurrency, load.candidate.concurrency) for load in loads] == expected
        assert {(load.cell.isl, load.cell.osl) for load in loads} == {(128, 128)}


def test_the_published_preset_has_32_requests_for_the_teacher_and_64_for_the_student(tmp_path: Path) -> None:
    teacher, student = (make_arm(tmp_path, model) for model in ("teacher", "student"))
    loads = loads_of(Comparison(baseline=teacher, candidate=student), Bench(preset="minitron-blog"))
    pairs = {(load.baseline.concurrency, load.candidate.concurrency) for load in loads}
    assert pairs == {(32, 32), (64, 64), (32, 64)}
    assert len(loads) == 33
    with pytest.raises(ValueError, match="'max' is not a number of concurrent requests"):
        Bench(concurrency="max")  # type: ignore[arg-type]


def test_the_data_set_is_seeded_and_of_the_requested_lengths(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_dataset(tmp_path / name, REQUESTS, vocab_size=50, seed=seed)
    first, again, other = ((tmp_path / name).read_text() for name in "abc")
    assert first == again != other
    lines = [json.loads(line) for line in first.splitlines()]
    assert len(lines) == 100
    assert all(len(line["input_ids"]) == 6 and line["output_tokens"] == 4 for line in lines)
    assert all(0 <= token < 50 for line in lines for token in line["input_ids"])


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"config\.json"):
        TensorrtLlm().check(tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DependencyError, match="trtllm-bench"):
        TensorrtLlm().check(make_arm(tmp_path, "teacher").path)


def test_the_whole_experiment_on_the_stand_in(tmp_path: Path, stand_in: Path) -> None:
    config = Bench(isl_osl=((6, 4),), concurrency=(2,), num_requests=20, min_pairs=5, max_pairs=6)
    pair = Comparison(baseline=make_arm(tmp_path, "teacher"), candidate=make_arm(tmp_path, "student"))
    results = run_serving([pair], config, console=Console(), seed=0)
    (cell,) = results.comparisons[0].cells
    assert (results.protocol.mode, cell.status, cell.order) == ("concurrency", "ok", "ABBAABBAAB")
    assert cell.speedup is not None
    assert cell.speedup.ratio == pytest.approx(2.0)
    assert cell.candidate is not None
    throughput = cell.candidate.metrics["output_tokens_per_s"]
    assert isinstance(throughput, Summary)
    assert throughput.median == 400.0
    assert isinstance(cell.candidate.metrics["latency_p99_s"], Absent)
    for report in (render_markdown(results), render_html(results)):
        assert "requests in flight" in report
        assert "Static batch" not in report
        assert "Output throughput of all requests" in report
        assert "whole batch" not in report.partition("How it was measured")[0]
        assert "Warm-up per model" not in report


def test_a_vocabulary_that_is_not_known_is_refused(tmp_path: Path, stand_in: Path) -> None:
    teacher, student = (make_arm(tmp_path, model) for model in ("teacher", "student"))
    pair = Comparison(baseline=teacher, candidate=replace(student, dims=None))
    with pytest.raises(UsageError, match="vocabulary"):
        run_serving([pair], Bench(), console=Console(), seed=0)


def test_a_server_that_fails_leaves_its_reason_without_paths(tmp_path: Path, stand_in: Path) -> None:
    broken = make_arm(tmp_path, "broken")
    with pytest.raises(ResourceError, match="out of memory"):
        TensorrtLlm().serve(broken.path, REQUESTS, vocab_size=50, seed=0)
    pair = Comparison(baseline=make_arm(tmp_path, "teacher"), candidate=broken)
    config = Bench(isl_osl=((6, 4),), concurrency=(2,), num_requests=20)
    (cell,) = run_serving([pair], config, console=Console(), seed=0).comparisons[0].cells
    assert cell.status == "FAIL"
    assert cell.reason is not None
    assert "out of memory in broken-bf16" in cell.reason


@pytest.mark.parametrize(
    ("behaviour", "limit", "sentence"),
    [
        ("out of memory", 60, "trtllm-bench ran out of memory; found: torch.OutOfMemoryError: CUDA out of"),
        ("hangs", 1, "trtllm-bench did not end in time and was stopped; found: its last line: [TRT-LLM]"),
        ("answers less", 60, "trtllm-bench did not do the requested work; expected"),
    ],
)
def test_one_arm_that_goes_wrong_leaves_the_others_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, limit: int, sentence: str
) -> None:
    stand_in_trtllm_bench.install(tmp_path / "bin", behaviour=behaviour, of="broken")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    teacher, student, broken = (make_arm(tmp_path, name) for name in ("teacher", "student", "broken"))
    pairs = [Comparison(baseline=teacher, candidate=arm) for arm in (broken, student)]
    config = Bench(isl_osl=((6, 4),), concurrency=(2,), num_requests=4, max_pairs=5, timeout_s=limit)
    results = run_serving(pairs, config, console=Console(), seed=0)
    [failed], [measured] = (one.cells for one in results.comparisons)
    assert (failed.status, failed.speedup) == ("FAIL", None)
    assert sentence in str(failed.reason)
    assert measured.speedup is not None
    assert sentence.partition(";")[0] in render_markdown(results)
