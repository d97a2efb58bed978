"""The release gate: one benchmark's results against an earlier one's, cell by cell.

Tight on the ratio to the teacher measured in the same run, which other tenants and slow clocks leave
alone; loose on absolute throughput, which they do not. A slow-down counts only if it is significant
(Welch's t on the series' mean log rates, one false alarm in a thousand cells), large as a fraction, and
large in seconds. A cell too noisy to tell gets no verdict; another machine or other versions fail closed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bench.compare.comparability import mismatches
from bench.compare.verdicts import SEVERITY, Verdict
from bench.measure.statistics import coefficient_of_variation
from bench.report.results import Absent, ArmCell, CellResult, Results, Roofline

# Two-sided, so a slow-down that is not there is called one in a thousand cells.
CONFIDENCE = 0.998

# Speed over the best that the machine's own rates allow. Weights in a cache are read faster than from memory,
# by a few times at most; beyond that nothing was computed.
MAX_REACHED = 4.0

_Name = tuple[str, str, str]  # baseline arm, candidate arm, cell


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What counts as a slow-down; fractions, but for `seconds`."""

    ratio: float = 0.05  # lost of the ratio to the teacher
    absolute: float = 0.25  # lost of the student's own throughput
    seconds: float = 0.001  # slow-downs of a whole generation below this never count
    max_cv: float = 0.10  # spread of latencies beyond which a cell gets no verdict


DEFAULT_THRESHOLDS = Thresholds()


@dataclass(frozen=True, kw_only=True)
class Change:
    """A ratio of geometric means, now over before, with its confidence interval."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class CellVerdict:
    """What the gate says of one cell (`128/128 x 8`), and why in one sentence.

    `ratio_change` is of the speed-up, `absolute_change` of the candidate's own throughput, now over before;
    None without a measurement.
    """

    baseline: str
    candidate: str
    cell: str
    verdict: Verdict
    reason: str
    ratio_change: Change | None = None
    absolute_change: Change | None = None
    # The baseline may exempt a cell, and ratios to a student's arm never count: a faster one would make its
    # twins look slower.
    is_gated: bool = True


@dataclass(frozen=True, kw_only=True)
class GateReport:
    """Every cell's verdict, and the worst of them."""

    cells: tuple[CellVerdict, ...]
    mismatches: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """The most severe of all gated cells."""
        if self.mismatches:
            return "MISMATCH"
        gated = (cell.verdict for cell in self.cells if cell.is_gated)
        return max(gated, key=SEVERITY.index, default="NO-BASELINE")


def compare_results(before: Results, now: Results, thresholds: Thresholds = DEFAULT_THRESHOLDS) -> GateReport:
    """Judge every cell of either benchmark."""
    differing = mismatches(before, now)
    earlier, current = _cells_of(before), _cells_of(now)
    students = {arm.id for arm in now.arms if arm.model != now.arms[0].model}
    cells = tuple(
        _judge(
            name,
            earlier.get(name),
            current.get(name),
            differing,
            thresholds,
            exempt="its baseline is a student's" if name[0] in students else None,
        )
        for name in {**current, **earlier}
    )
    return GateReport(cells=cells, mismatches=differing)


def _cells_of(results: Results) -> dict[_Name, CellResult]:
    return {
        (comparison.baseline, comparison.candidate, cell.identity): cell
        for comparison in results.comparisons
        for cell in comparison.cells
    }


def _judge(
    name: _Name,
    before: CellResult | None,
    now: CellResult | None,
    differing: Sequence[str],
    thresholds: Thresholds,
    *,
    exempt: str | None,
) -> CellVerdict:
    baseline, candidate, cell = name
    ratio_change = absolute_change = None
    verdict: Verdict
    if differing:
        verdict, reason = "MISMATCH", "the two benchmarks cannot be compared: " + "; ".join(differing)
    elif before is None or before.speedup is None:
        verdict, reason = "NO-BASELINE", "the earlier benchmark did not measure this cell"
    elif now is None or now.speedup is None:
        missing = "is missing" if now is None else f"fails: {now.reason}"
        verdict, reason = "REGRESSION", f"the cell was measured before and now {missing}"
    else:
        ratio_change, absolute_change = ratio_change_of(before, now), absolute_change_of(before, now)
        verdict, reason = judge_cell(before, now, ratio_change, absolute_change, thresholds)
    if before is not None and not before.gated:
        exempt = before.not_gated_reason or "no reason given"
    return CellVerdict(
        baseline=baseline,
        candidate=candidate,
        cell=cell,
        verdict=verdict,
        reason=reason if exempt is None else f"not gated ({exempt}): {reason}",
        is_gated=exempt is None,
        ratio_change=ratio_change,
        absolute_change=absolute_change,
    )


def ratio_change_of(before: CellResult, now: CellResult) -> Change:
    """How the speed-up over the teacher changed; both series are paired within their own run."""
    return change_of(_log_speedups(before), _log_speedups(now))


def absolute_change_of(before: CellResult, now: CellResult) -> Change:
    """How the candidate's own throughput changed."""
    return change_of(_log_rates(before, before.candidate), _log_rates(now, now.candidate))


def change_of(before_logs: NDArray[np.float64], now_logs: NDArray[np.float64]) -> Change:
    """Welch's interval on the difference of means of two series of logarithms, each of two or more."""
    ratio = math.exp(float(now_logs.mean() - before_logs.mean()))
    if np.ptp(before_logs) == 0 and np.ptp(now_logs) == 0:
        return Change(ratio=ratio, low=ratio, high=ratio)  # t is not defined without any spread
    with warnings.catch_warnings():  # one series may well have no spread of its own
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = stats.ttest_ind(now_logs, before_logs, equal_var=False).confidence_interval(CONFIDENCE)
    return Change(ratio=ratio, low=math.exp(interval.low), high=math.exp(interval.high))


def judge_cell(
    before: CellResult,
    now: CellResult,
    ratio_change: Change,
    absolute_change: Change,
    thresholds: Thresholds,
) -> tuple[Verdict, str]:
    """The verdict on a cell that both benchmarks measured, and its reason."""
    if anomaly := anomaly_of(now):
        return "ANOMALOUS", anomaly
    for when, cell in (("earlier", before), ("current", now)):
        if noise := _noise(cell, thresholds):
            return "NOISY", f"the {when} measurement: {noise}"
    latency_s = float(np.median(_samples(now.candidate, "latency_s")))
    found: list[tuple[Verdict, str]] = [
        ("PASS", f"the ratio to the baseline arm changed by {ratio_change.ratio - 1:+.1%}")
    ]
    for what, change, tolerance in (
        ("the ratio to the baseline arm", ratio_change, thresholds.ratio),
        ("the absolute throughput", absolute_change, thresholds.absolute),
    ):
        lost_s = latency_s * (1 - change.ratio)
        if change.ratio > 1 - tolerance or lost_s < thresholds.seconds:
            continue
        loss = f"{what} fell by {1 - change.ratio:.1%} ({lost_s * 1000:.1f} ms of a generation)"
        if change.high < 1:
            found.append(("REGRESSION", f"{loss}; {tolerance:.0%} is tolerated"))
        else:
            found.append(("NOISY", f"{loss}, but the samples are too few to be sure"))
    return max(found, key=lambda entry: SEVERITY.index(entry[0]))


def anomaly_of(cell: CellResult) -> str | None:
    """Why a cell cannot be a measurement of work that was done, or None."""
    found = cell.roofline
    if not isinstance(found, Roofline) or max(found.candidate_share, found.reached) <= MAX_REACHED:
        return None
    return (
        f"{found.candidate_share:.1f} times as fast as this machine's rates allow, and {found.reached:.1f} "
        "times the best possible speed-up"
    )


def _noise(cell: CellResult, thresholds: Thresholds) -> str | None:
    """Why a measurement is too noisy for a verdict, or None."""
    if cell.status != "ok":
        return cell.reason or cell.status
    for arm in (cell.baseline, cell.candidate):
        cv = coefficient_of_variation(_samples(arm, "latency_s").tolist())
        if cv > thresholds.max_cv:
            return f"latencies vary by {cv:.1%}; {thresholds.max_cv:.0%} is allowed"
    return None


def _log_speedups(cell: CellResult) -> NDArray[np.float64]:
    return _log_rates(cell, cell.candidate) - _log_rates(cell, cell.baseline)


def _log_rates(cell: CellResult, arm: ArmCell | None) -> NDArray[np.float64]:
    """Mean log throughput of every series: what drifts from one to the next makes its pairs dependent."""
    logs = np.log(_samples(arm, "output_tokens_per_s"))
    return logs.reshape(cell.num_series, -1).mean(axis=1) if cell.num_series > 1 else logs


def _samples(arm: ArmCell | None, metric: str) -> NDArray[np.float64]:
    assert arm is not None
    summary = arm.metrics[metric]
    assert not isinstance(summary, Absent), "latency and throughput exist in every measured cell"
    return np.asarray(summary.samples, dtype=np.float64)
