"""The whole benchmark on two real, tiny graphs. Nothing here asserts how fast they are."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest

from bench.design.arms import Comparison
from bench.measure.measure import run_bench
from bench.measure.statistics import NUM_SERIES, StoppingRule
from bench.report.html import render_html
from bench.report.markdown import render_markdown
from bench.report.results import NotMeasured, PeakMemory, Results, Summary
from bench.runtimes.onnxruntime_genai import OnnxRuntimeGenai, OnnxRuntimeGenaiSession
from compressor.core.console import Console
from compressor.core.errors import UsageError
from compressor.recipe.recipe import Bench

CONFIG = Bench(isl_osl=((8, 4), (60, 60)), batch_sizes=(1, 2), min_pairs=5, max_pairs=6)
FP8 = NotMeasured(what="FP8 kernels", reason="no GPU of compute capability 8.9")


@pytest.fixture(scope="module")
def results(comparison: Comparison) -> Results:
    return run_bench([comparison], CONFIG, console=Console(), seed=3, not_measured=[FP8])


@pytest.fixture
def broken(comparison: Comparison, tmp_path: Path) -> Comparison:
    """The student's graph is cut short."""
    path = tmp_path / "student"
    shutil.copytree(comparison.candidate.path, path)
    (path / "model.onnx").write_bytes((path / "model.onnx").read_bytes()[:1000])
    return Comparison(baseline=comparison.baseline, candidate=replace(comparison.candidate, path=path))


def test_every_cell_of_the_grid_is_in_the_table(results: Results) -> None:
    (compared,) = results.comparisons
    assert (compared.baseline, compared.candidate) == ("teacher-fp32", "student-fp32")
    cells = [(cell.isl, cell.osl, cell.batch_size) for cell in compared.cells]
    assert cells == [(8, 4, 1), (8, 4, 2), (60, 60, 1), (60, 60, 2)]


def test_cells_that_ran_carry_raw_samples_of_one_a_b_b_a_series(results: Results) -> None:
    for cell in results.comparisons[0].cells[:2]:
        assert cell.status in ("ok", "NOISY")
        assert cell.speedup is not None
        assert cell.num_series in (1, NUM_SERIES)
        length, rest = divmod(cell.speedup.num_pairs, cell.num_series)
        assert 5 <= length <= 6
        assert rest == 0
        assert cell.order == "ABBAABBAABBA"[: 2 * length]
        for arm in (cell.baseline, cell.candidate):
            assert arm is not None
            latency = arm.metrics["latency_s"]
            assert isinstance(latency, Summary)
            assert len(latency.samples) == cell.speedup.num_pairs
            assert latency.minimum <= latency.median <= latency.maximum
            assert 2 <= arm.num_warmup_runs <= 6


def test_every_series_is_measured_on_models_loaded_for_it(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over two cells: one load of both models for each pass over the grid."""
    loaded: list[Path] = []
    load = OnnxRuntimeGenai.load

    def counted(self: OnnxRuntimeGenai, path: Path, *, precision: str) -> OnnxRuntimeGenaiSession:
        loaded.append(path)
        return load(self, path, precision=precision)

    monkeypatch.setattr(OnnxRuntimeGenai, "load", counted)
    narrow = StoppingRule(min_pairs=2, max_pairs=2, max_relative_width=math.inf)
    monkeypatch.setattr("bench.measure.measure.stopping_rule", lambda _config: narrow)
    config = Bench(isl_osl=((8, 4),), batch_sizes=(1, 2))
    results = run_bench([comparison], config, console=Console(), seed=0)
    assert [cell.num_series for cell in results.comparisons[0].cells] == [NUM_SERIES] * 2
    assert loaded == [arm.path for arm in comparison.arms] * (1 + NUM_SERIES)


def test_fewer_series_are_measured_and_called_indicative(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = partialmethod(StoppingRule.__init__, max_relative_width=math.inf)
    monkeypatch.setattr(StoppingRule, "__init__", wide)
    config = Bench(isl_osl=((8, 4),), batch_sizes=(1,), max_pairs=5, num_series=3)
    results = run_bench([comparison], config, console=Console(), seed=0)
    assert [cell.num_series for cell in results.comparisons[0].cells] == [3]
    assert results.protocol.num_series == 3
    assert results.protocol.is_indicative
    assert "**Indicative only**: 3 series" in render_markdown(results)
    assert "<b>Indicative only</b>: 3 series" in render_html(results)


def test_cells_that_cannot_run_stay_with_status_and_reason(results: Results) -> None:
    for cell in results.comparisons[0].cells[2:]:
        assert (cell.status, cell.speedup) == ("FAIL", None)
        assert cell.reason is not None
        assert "context_length" in cell.reason


def test_arms_carry_digests_and_the_peak_of_the_largest_cell_that_runs(results: Results) -> None:
    for arm in results.arms:
        assert isinstance(arm.peak_memory, PeakMemory)
        assert (arm.peak_memory.isl, arm.peak_memory.batch_size) == (8, 2)
        assert {"genai_config.json", "model.onnx"} <= set(arm.files)


def test_results_are_json_of_their_schema_without_paths(results: Results, comparison: Comparison) -> None:
    document = results.model_dump_json(by_alias=True)
    assert document.startswith('{"schema":"compress-export/bench/1"')
    assert Results.model_validate_json(document) == results
    assert results.not_measured == (FP8,)
    for text in (document, render_markdown(results)):
        assert str(comparison.baseline.path.parent) not in text


def test_a_model_that_does_not_load_fails_its_cells_and_nothing_else(
    broken: Comparison, comparison: Comparison
) -> None:
    config = CONFIG.model_copy(update={"isl_osl": ((4, 2),), "batch_sizes": (1,)})
    twin = replace(broken.candidate, id="broken-fp32")
    pair = [replace(broken, candidate=twin), comparison]
    failed, healthy = run_bench(pair, config, console=Console(), seed=0).comparisons
    assert failed.cells[0].status == "FAIL"
    assert failed.cells[0].reason is not None
    assert str(broken.candidate.path) not in failed.cells[0].reason
    assert healthy.cells[0].status in ("ok", "NOISY")


def test_two_models_of_one_name_are_refused(comparison: Comparison) -> None:
    other = replace(comparison.candidate, id=comparison.baseline.id)
    with pytest.raises(UsageError, match="one name"):
        run_bench([replace(comparison, candidate=other)], CONFIG, console=Console(), seed=0)


def test_a_directory_of_another_kind_is_refused_before_anything_is_measured(
    comparison: Comparison, tmp_path: Path
) -> None:
    other = replace(comparison.candidate, path=tmp_path)
    with pytest.raises(UsageError, match=r"genai_config\.json"):
        run_bench([replace(comparison, candidate=other)], CONFIG, console=Console(), seed=0)
