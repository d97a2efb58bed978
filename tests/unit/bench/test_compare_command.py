"""`bench compare` end to end: files in, exit code, table, step summary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.report.results import Results
from bench.report.write import write_reports
from compressor.cli.main import invoke
from tests.unit.bench.results_by_hand import cell_of, gpu, results_of

SLOW, FAST = cell_of([2.0] * 5, [1.2] * 5), cell_of([2.0] * 5, [1.0] * 5)


def save(results: Results, directory: Path) -> str:
    write_reports(results, directory)
    return str(directory / "results.json")


@pytest.fixture
def baseline(tmp_path: Path) -> str:
    return save(results_of([FAST]), tmp_path / "before")


def test_an_equal_benchmark_passes(baseline: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["bench", "compare", baseline, baseline]) == 0
    assert "Speed gate: PASS" in capsys.readouterr().out


def test_a_regression_exits_7_and_is_summarised(
    baseline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("# Before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    slow = save(results_of([SLOW]), tmp_path / "slow")
    assert invoke(["bench", "compare", baseline, slow, "--fail-on", "regression", "--json"]) == 7
    shown = capsys.readouterr()
    assert json.loads(shown.out)["verdict"] == "REGRESSION"
    assert "the speed gate says REGRESSION" in shown.err
    assert summary.read_text().startswith("# Before\n## Speed gate: REGRESSION")


@pytest.mark.parametrize(("setting", "code"), [("regression", 7), ("noisy", 7), ("never", 0)])
def test_another_gpu_fails_closed(baseline: str, tmp_path: Path, setting: str, code: int) -> None:
    other = save(results_of([FAST], gpus=(gpu(),)), tmp_path / "other")
    assert invoke(["bench", "compare", baseline, other, "--fail-on", setting]) == code


@pytest.mark.parametrize(("setting", "code"), [("regression", 0), ("noisy", 7)])
def test_noise_fails_only_on_demand(baseline: str, tmp_path: Path, setting: str, code: int) -> None:
    noisy = save(results_of([cell_of([2.0, 1.0] * 5, [1.0, 2.0] * 5)]), tmp_path / "noisy")
    assert invoke(["bench", "compare", baseline, noisy, "--fail-on", setting]) == code


def test_an_indicative_benchmark_is_not_compared(
    baseline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = results_of([FAST])
    protocol = whole.protocol.model_copy(update={"num_series": 3, "is_indicative": True})
    quick = save(whole.model_copy(update={"protocol": protocol}), tmp_path / "quick")
    for pair in ((baseline, quick), (quick, baseline)):
        assert invoke(["bench", "compare", *pair]) == 2
        assert "an indicative benchmark is no baseline" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "{}", "not JSON"])
def test_what_is_no_result_is_a_usage_error(baseline: str, tmp_path: Path, content: str | None) -> None:
    other = tmp_path / "other.json"
    if content is not None:
        other.write_text(content)
    assert invoke(["bench", "compare", baseline, str(other)]) == 2


def test_the_tolerance_can_be_set(baseline: str, tmp_path: Path) -> None:
    slow = save(results_of([SLOW]), tmp_path / "slow")
    assert invoke(["bench", "compare", baseline, slow, "--ratio-tolerance", "0.3"]) == 0
