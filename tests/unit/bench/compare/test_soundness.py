"""Benchmark JSON that no benchmark wrote: one clear error, never a verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.compare.soundness import complaint_about
from bench.machine.machine_rates import RATES_FILE, machine_rates
from bench.report.write import read_results
from bench.runtimes.tensorrt_llm import read_report
from compressor.cli.main import invoke
from compressor.core.errors import UsageError, VerificationError
from tests.corruptions.formats import place
from tests.unit.bench.measure.test_serving import REPORT, REQUESTS
from tests.unit.bench.results_by_hand import cell_of, results_of

SOUND = results_of([cell_of([2.0, 2.01, 2.02, 2.01, 2.0], [1.0, 1.01, 1.0, 1.01, 1.0])])


CELL = "comparisons.0.cells.0"
RATE = f"{CELL}.candidate.metrics.output_tokens_per_s"
VALUES: list[tuple[str, Any]] = [
    (f"{RATE}.samples.1", float("nan")),
    (f"{RATE}.samples.1", float("inf")),
    (f"{RATE}.samples.1", -3.0),
    (f"{RATE}.samples.1", 0),
    (f"{RATE}.samples.1", 1e-300),
    (f"{RATE}.samples.1", 1e300),
    (f"{RATE}.samples.1", "8.0"),
    (f"{RATE}.samples.1", True),
    (f"{RATE}.samples.1", None),
    (f"{RATE}.samples", []),
    (f"{RATE}.samples", [8.0]),
    (f"{RATE}.samples", [8.0, 8.0]),
    (f"{RATE}.median", 80.0),
    (f"{RATE}.minimum", 1e-3),
    (f"{RATE}.cv", -1.0),
    (RATE, {"absent": "by hand"}),
    (f"{CELL}.candidate", None),
    (f"{CELL}.speedup", None),
    (f"{CELL}.speedup.ratio", 20.0),
    (f"{CELL}.speedup.low", 3.0),
    (f"{CELL}.status", "FAIL"),
    (f"{CELL}.status", "PASS"),
    (f"{CELL}.num_series", 0),
    (f"{CELL}.num_series", -1),
    (f"{CELL}.num_series", 3),
    (f"{CELL}.isl", -128),
    (f"{CELL}.batch_size", 10**30),
    (f"{CELL}.batch_size", 1.0),
    (f"{CELL}.extra", 1),
    ("comparisons.0.cells", []),
    ("comparisons.0.baseline", "somebody"),
    ("comparisons", []),
    ("arms", []),
    ("protocol", {}),
    ("environment.memory_bytes", "8"),
]


@pytest.mark.parametrize(("field", "value"), VALUES, ids=lambda value: str(value)[-40:])
def test_a_changed_value_gets_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, value: Any
) -> None:
    document = SOUND.model_dump(mode="json", by_alias=True)
    node, leaf = place(document, field)
    node[leaf] = value
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(SOUND.model_dump_json(by_alias=True))
    bad.write_text(json.dumps(document))
    for pair in ((good, bad), (bad, good)):
        assert invoke(["bench", "compare", *map(str, pair)]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.count("error:") == 1
        assert str(bad) in shown.err


@pytest.mark.parametrize(
    ("field", "times"),
    [("arms", 0), (RATE, 0), (f"{CELL}.isl", 0), ("arms", 2), ("comparisons.0.cells", 2)],
)
def test_missing_and_repeated_parts_are_refused(tmp_path: Path, field: str, times: int) -> None:
    document = SOUND.model_dump(mode="json", by_alias=True)
    node, leaf = place(document, field)
    if times:
        node[leaf] *= times
    else:
        del node[leaf]
    file = tmp_path / "results.json"
    file.write_text(json.dumps(document))
    with pytest.raises(UsageError):
        read_results(file)


def test_a_number_too_large_for_a_float_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    text = SOUND.model_dump_json(by_alias=True)
    assert '"min_pairs":5' in text
    file.write_text(text.replace('"warmup_tolerance":0.1', '"warmup_tolerance":1e999'))
    with pytest.raises(UsageError, match="1e999"):
        read_results(file)


def test_a_sound_benchmark_and_its_editable_fields_pass(tmp_path: Path) -> None:
    assert complaint_about(SOUND) is None
    document = SOUND.model_dump(mode="json", by_alias=True)
    document["comparisons"][0]["cells"][0] |= {"gated": False, "not_gated_reason": "a slow disk"}
    file = tmp_path / "results.json"
    file.write_text(json.dumps(document))
    assert not read_results(file).comparisons[0].cells[0].gated


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0, "20.0", True, None, [1.0], {}])
@pytest.mark.parametrize(
    "field",
    [
        "performance.total_latency_ms",
        "performance.output_throughput_per_gpu_tok_s",
        "performance.request_latency_percentiles_ms.p99",
        "streaming_metrics.avg_ttft_ms",
    ],
)
def test_a_number_that_no_server_reached_is_refused(field: str, value: Any) -> None:
    report = json.loads(json.dumps(REPORT))
    node, leaf = place(report, field)
    node[leaf] = value
    with pytest.raises(VerificationError, match="report of trtllm-bench"):
        read_report(report, REQUESTS)


@pytest.mark.parametrize("part", ["request_info", "performance", "streaming_metrics"])
@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_a_part_of_another_type_is_refused(part: str, value: Any) -> None:
    with pytest.raises(VerificationError, match=r"report of trtllm-bench|requested work"):
        read_report({**REPORT, part: value}, REQUESTS)


@pytest.mark.parametrize(
    "record",
    [
        "{",
        "[]",
        "{}",
        '{"bandwidth_bytes_per_s": -1, "matmul_ops_per_s": {}, "device": "x"}',
        '{"bandwidth_bytes_per_s": 1e9, "matmul_ops_per_s": {"fp32": 0}, "device": "x"}',
        '{"bandwidth_bytes_per_s": 1e999, "matmul_ops_per_s": {}, "device": "x"}',
        '{"bandwidth_bytes_per_s": NaN, "matmul_ops_per_s": {}, "device": "x"}',
    ],
)
def test_rates_that_no_machine_has_are_refused(tmp_path: Path, record: str) -> None:
    (tmp_path / RATES_FILE).write_text(record)
    with pytest.raises(VerificationError, match="rate") as caught:
        machine_rates(tmp_path, device="cpu", precisions=())
    assert RATES_FILE in str(caught.value)
