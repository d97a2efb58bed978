"""`compress-export bench compare`: the release gate on speed."""

from __future__ import annotations

import os
from pathlib import Path

import click

from compressor.cli.session import Show, emit, showing
from compressor.core.errors import SpeedGateError, UsageError

STEP_SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
# What fails at each setting; another machine or other versions always do, unless nothing does.
FAILING: dict[str, frozenset[str]] = {
    "regression": frozenset({"REGRESSION", "ANOMALOUS", "MISMATCH"}),
    "noisy": frozenset({"REGRESSION", "ANOMALOUS", "MISMATCH", "NOISY", "NO-BASELINE"}),
    "never": frozenset(),
}


@click.command()
@click.argument("baseline", metavar="BASELINE.json", type=click.Path(path_type=Path))
@click.argument("current", metavar="CURRENT.json", type=click.Path(path_type=Path))
@click.option(
    "--fail-on",
    type=click.Choice(list(FAILING)),
    default="regression",
    show_default=True,
    help=(
        "Verdicts that end with exit code 7. regression: a slow-down, a speed beyond what this machine "
        "allows, or benchmarks that cannot be compared; "
        "noisy: every verdict but PASS; never: none."
    ),
)
@click.option(
    "--ratio-tolerance",
    metavar="NUMBER",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Tolerated loss of a model's speed-up over the first model of the same run, as a fraction.",
)
@click.option(
    "--absolute-tolerance",
    metavar="NUMBER",
    type=click.FloatRange(0, 1),
    default=0.25,
    show_default=True,
    help="Tolerated loss of a model's own throughput, as a fraction.",
)
@showing
def compare(
    baseline: Path,
    current: Path,
    fail_on: str,
    ratio_tolerance: float,
    absolute_tolerance: float,
    show: Show,
) -> None:
    """Compare two results.json of `bench`; exit code 7 on a regression or a mismatch.

    Both the speed-up over the first model of the same run and the absolute throughput are compared. In a
    GitHub workflow the table is also appended to the summary of the step.
    """
    from bench.compare.gate import Thresholds, compare_results
    from bench.compare.gate_report import gate_document, render_gate
    from bench.report.write import read_results

    thresholds = Thresholds(ratio=ratio_tolerance, absolute=absolute_tolerance)
    results = {path: read_results(path) for path in (baseline, current)}
    for path, one in results.items():
        if one.protocol.is_indicative:
            raise UsageError(
                "an indicative benchmark is no baseline and passes no gate",
                where=str(path),
                expected="results of a benchmark without --bench-series, or with 6 or more",
                found=f"{one.protocol.num_series} series",
                hint="measure again without --bench-series",
            )
    report = compare_results(results[baseline], results[current], thresholds)
    text = render_gate(report)
    if summary := os.environ.get(STEP_SUMMARY_VARIABLE):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(text)
    emit(gate_document(report), show, text)
    if report.verdict in FAILING[fail_on]:
        reasons = [cell.reason for cell in report.cells if cell.is_gated and cell.verdict == report.verdict]
        raise SpeedGateError(
            f"the speed gate says {report.verdict}",
            where=str(current),
            expected="PASS",
            found=(reasons or list(report.mismatches))[0],
            hint="make the model as fast as before, or measure a new baseline if this speed is intended",
        )
