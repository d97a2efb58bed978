"""Both reports of results written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.report.html import render_html
from bench.report.markdown import render_markdown
from bench.report.numbers import show_peak, show_size
from bench.report.results import (
    Absent,
    ArmCell,
    CellResult,
    Interval,
    NotMeasured,
    PeakMemory,
    Quality,
    Results,
    Summary,
)
from bench.report.tables import pairs_of, verdict_on
from bench.report.write import SCHEMA_FILE, read_results, write_reports
from compressor.core.errors import UsageError
from tests.unit.bench.results_by_hand import cell_of, results_of

RATES = {"output_tokens_per_s": 16.0, "total_tokens_per_s": 1200.0}
DURATIONS = {"latency_s": 0.0041, "ttft_s": 0.0011}


def arm_cell(factor: float) -> ArmCell:
    """Medians: rates times `factor`, durations divided by it; no time per further token."""
    values = {name: value * factor for name, value in RATES.items()}
    values |= {name: value / factor for name, value in DURATIONS.items()}
    metrics = {
        name: Summary(median=value, cv=0.02, minimum=value, maximum=value, samples=(value,) * 5)
        for name, value in values.items()
    }
    return ArmCell(
        num_warmup_runs=2,
        is_settled=True,
        exploration_latency_s=(1.0,) * 5,
        metrics={**metrics, "tpot_s": Absent(absent="osl = 1")},
    )


@pytest.fixture
def results() -> Results:
    speedup = Interval(ratio=2.0, low=1.95, high=2.05, num_pairs=5)
    ratios: dict[str, Interval | Absent] = dict.fromkeys((*RATES, *DURATIONS), speedup)
    measured = {"baseline": arm_cell(1.0), "candidate": arm_cell(2.0), "speedup": speedup}
    good = CellResult(
        isl=8, osl=1, batch_size=1, status="ok", num_series=1, order="ABBAABBAAB", **measured,
        ratios={**ratios, "tpot_s": Absent(absent="osl = 1")},
    )  # fmt: skip
    noisy = good.model_copy(update={"batch_size": 2, "status": "NOISY", "reason": "30.0 % wide"})
    failed = CellResult(isl=9, osl=9, batch_size=64, status="FAIL", reason="out of | memory\nhere")
    written = results_of([good, noisy, failed])
    teacher, student = (
        arm.model_copy(update={"weight_bytes": 2**30, "file_bytes": 2**30}) for arm in written.arms
    )
    peak = PeakMemory(isl=8, osl=1, batch_size=2, peak_bytes=2**31, baseline_bytes=2**27)
    return written.model_copy(
        update={
            "arms": (teacher.model_copy(update={"peak_memory": peak}), student),
            "not_measured": (NotMeasured(what="FP8 kernels", reason="no such GPU"),),
        }
    )


def test_every_table_says_in_its_heading_what_it_shows(results: Results) -> None:
    headings = [line for line in render_markdown(results).splitlines() if line.startswith("### ")]
    arms = "student-fp32 against teacher-fp32"
    assert headings == [
        f"### Output throughput of the whole batch (generated tokens per second): {arms}",
        f"### Total throughput of the whole batch (prompt and generated tokens per second): {arms}",
        f"### Latency, request to last token: {arms}",
        f"### Time to first token (prefill): {arms}",
        f"### Time per output token after the first (decode step): {arms}",
    ]


def test_a_row_holds_median_spread_ratio_interval_pairs_and_verdict(results: Results) -> None:
    report = render_markdown(results)
    assert "| 8/1 | 1 | 16.0 ± 2.0% | 32.0 ± 2.0% | 2.00x [1.95, 2.05] | 5 | ok |" in report
    assert "| 8/1 | 1 | 1,200 ± 2.0% | 2,400 ± 2.0% |" in report
    assert "| 8/1 | 1 | 0.00410 ± 2.0% | 0.00205 ± 2.0% |" in report
    assert "| 8/1 | 1 | 1.10 ± 2.0% | 0.550 ± 2.0% |" in report


def test_a_metric_is_judged_by_its_own_interval_and_series_are_counted(results: Results) -> None:
    cell = results.comparisons[0].cells[0]
    wide = Interval(ratio=2.0, low=1.8, high=2.2, num_pairs=20)
    four = cell.model_copy(update={"num_series": 4, "speedup": wide, "ratios": {"ttft_s": wide}})
    assert verdict_on(four, "ttft_s", max_relative_width=0.25) == "ok"
    assert verdict_on(four, "ttft_s", max_relative_width=0.1) == "NOISY"
    assert (pairs_of(cell), pairs_of(four)) == ("5", "4 x 5")


def test_noise_failure_and_absence_are_shown_and_explained(results: Results) -> None:
    report = render_markdown(results)
    assert report.count("| 9/9 | 64 | – | – | – | – | FAIL |") == 5
    assert "| 8/1 | 1 | – | – | – | 5 | – |" in report
    assert "* 8/1, batch 2: **NOISY**, 30.0 % wide\n" in report
    assert "* 9/9, batch 64: **FAIL**, out of \\| memory here\n" in report
    assert "* **FP8 kernels**: no such GPU\n" in report
    assert "not measured: no cell of the grid ran" in report
    assert "2.00 GiB (0.12 GiB before loading), cell 8/1 x 2" in report
    assert "| 1,234,567 | 1.00 GiB | – | 1.00 GiB |" in report


def test_a_peak_on_a_gpu_comes_first() -> None:
    peak = PeakMemory(
        isl=8, osl=1, batch_size=2, peak_bytes=2**31, baseline_bytes=2**27, device_bytes=5 * 2**30
    )
    assert show_peak(peak) == "GPU 5.00 GiB, host 2.00 GiB (0.12 GiB before loading), cell 8/1 x 2"


def test_small_files_are_shown_in_mebibytes() -> None:
    assert show_size(5 * 2**20) == "5.00 MiB"
    assert show_size(2**30) == "1.00 GiB"
    assert show_size(Absent(absent="no engine")) == "–"


def test_tables_are_whole(results: Results) -> None:
    for block in render_markdown(results).split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in lines}) <= 1


def test_all_files_are_written_and_the_json_reads_back(results: Results, tmp_path: Path) -> None:
    write_reports(results, tmp_path / "bench")
    names = {"report.html", "report.md", "results.csv", "results.json"}
    assert {path.name for path in (tmp_path / "bench").iterdir()} == names
    document = json.loads((tmp_path / "bench" / "results.json").read_text())
    assert document["schema"] == "compress-export/bench/1"
    assert read_results(tmp_path / "bench" / "results.json") == results


def test_results_of_another_schema_are_refused(results: Results, tmp_path: Path) -> None:
    other = results.model_dump(mode="json", by_alias=True) | {"schema": "compress-export/bench/2"}
    (tmp_path / "results.json").write_text(json.dumps(other))
    with pytest.raises(UsageError, match="schema"):
        read_results(tmp_path / "results.json")


def test_the_published_schema_is_the_one_in_use() -> None:
    schema = Results.model_json_schema()
    published = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    assert published == schema, f"write {SCHEMA_FILE.name} again: python -m bench.report.write"
    assert schema["properties"]["schema"]["const"] == "compress-export/bench/1"
    assert "schema_id" not in schema["properties"]


@pytest.mark.parametrize(("is_lower", "way"), [(True, "lower"), (False, "higher")])
def test_the_page_says_which_quality_is_better(*, is_lower: bool, way: str) -> None:
    results = results_of([cell_of([2.0, 2.01] * 3, [1.0, 1.01] * 3)])
    model = results.arms[0].model
    quality = Quality(model=model, metric="some figure", value=9.0, is_better_when_lower=is_lower)
    page = render_html(results.model_copy(update={"quality": (quality,)}))
    assert f"some figure ({way} is better)" in page
