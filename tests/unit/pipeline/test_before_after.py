"""The table at the end of a run, against numbers that are written by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.report.results import PeakMemory, Results
from compressor.cli.render import summary_text
from compressor.pipeline.before_after import before_and_after, page_of
from compressor.pipeline.summary import RunSummary
from tests.unit.bench.results_by_hand import cell_of, results_of
from tests.unit.pipeline.summaries import evaluation, make_summary, plan_of


def bench() -> Results:
    """8 tokens in 2.0 s against 1.0 s, and 3 GiB against 1.5."""
    found = results_of([cell_of([2.0] * 6, [1.0] * 6)])
    peaks = {"teacher": 3 << 30, "student": 3 << 29}
    arms = tuple(
        arm.model_copy(
            update={
                "peak_memory": PeakMemory(
                    isl=8, osl=4, batch_size=2, peak_bytes=peaks[arm.model], baseline_bytes=1
                )
            }
        )
        for arm in found.arms
    )
    return found.model_copy(update={"arms": arms})


@pytest.fixture
def summary(tmp_path: Path) -> RunSummary:
    measured = evaluation(teacher=2.0, pruned=9.0, distilled=3.0, quantized=4.0)
    made = make_summary(plan_of("a-model", "text.txt"), measured, bench=bench())
    return made.model_copy(
        update={"out_dir": str(tmp_path / "out"), "student": str(tmp_path / "out/student")}
    )


def test_every_row_by_hand(summary: RunSummary) -> None:
    rows = {name: values for name, *values in before_and_after(summary)}
    plan = summary.plan
    before, after = plan.teacher.num_parameters, plan.student.num_parameters
    assert rows["parameters"] == [f"{before:,}", f"{after:,}", f"{100 * (after - before) / before:+.0f}%"]
    assert rows["perplexity (lower is better)"] == ["4.000", "5.000", "1.25x"]
    assert rows["perplexity, fp8 (lower is better)"] == ["4.000", "6.000", "1.50x"]
    assert rows["output tokens/s, fp32, 8/4, batch 2"] == ["4.0", "8.0", "2.00x"]
    assert rows["memory in use, fp32"] == ["3.00 GiB", "1.50 GiB", "-50%"]


def test_weights_are_those_of_the_checkpoints_that_were_written(summary: RunSummary) -> None:
    exports = {"huggingface": SimpleNamespace(precision="bf16"), "huggingface-fp8": SimpleNamespace()}
    rows = before_and_after(summary.model_copy(update={"exports": exports}))
    sizes = [row for row in rows if row[0].startswith("weights")]
    assert [row[0] for row in sizes] == ["weights, bf16", "weights, bf16 to fp8"]
    teacher, student = summary.plan.teacher.num_parameters, summary.plan.student.num_parameters
    # Two bytes a parameter; a student without GPUs' FP8 keeps its embeddings in 16 bits.
    assert sizes[0][1:3] == (f"{2 * teacher / 2**10:.1f} KiB", f"{2 * student / 2**10:.1f} KiB")


def test_scores_of_tasks_are_percents_and_points(summary: RunSummary) -> None:
    scores = {"teacher": 0.5, "distilled": 0.4375}
    tasks = SimpleNamespace(
        tasks={"arc_easy": SimpleNamespace(metric="acc,none")},
        models={
            name: SimpleNamespace(tasks={"arc_easy": {"acc,none": score}}) for name, score in scores.items()
        },
    )
    rows = before_and_after(summary.model_copy(update={"tasks": tasks}))
    assert ("arc_easy", "50.0%", "43.8%", "-6.2 points") in rows


def test_a_cell_that_failed_and_a_run_without_a_benchmark_have_no_row(summary: RunSummary) -> None:
    (comparison,) = bench().comparisons
    failed = comparison.cells[0].model_copy(update={"speedup": None, "status": "failed"})
    changed = bench().model_copy(
        update={"comparisons": (comparison.model_copy(update={"cells": (failed,)}),)}
    )
    for one in (changed, None):
        rows = before_and_after(summary.model_copy(update={"bench": one}))
        assert not [row for row in rows if row[0].startswith("output tokens")]


def test_a_benchmark_of_few_series_is_called_indicative_at_the_end(summary: RunSummary) -> None:
    assert "indicative" not in summary_text(summary)
    measured = bench()
    protocol = measured.protocol.model_copy(update={"num_series": 3, "is_indicative": True})
    few = measured.model_copy(update={"protocol": protocol})
    assert ", indicative: 3 series" in summary_text(summary.model_copy(update={"bench": few}))


def test_the_run_ends_with_the_table_and_where_everything_is(summary: RunSummary) -> None:
    out = Path(summary.out_dir)
    assert page_of(summary) is None
    assert "page  " not in summary_text(summary)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.html").touch()
    text = summary_text(summary)
    ending = text[text.index("Before and after") :].splitlines()
    assert ending[1].split() == ["before", "after", "change"]
    assert ending[-4:] == [
        f"student  {out}/student",
        f"page     {out}/report.html",
        f"card     {out}/README.md",
        f"check it compress-export verify {out}",
    ]
