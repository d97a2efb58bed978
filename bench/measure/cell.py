"""One cell of one comparison: warm up, measure series in A B B A order, summarise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bench.design.grid import Cell
from bench.design.prompts import make_prompts
from bench.measure.statistics import (
    PairedMeasurement,
    Sample,
    Series,
    StoppingRule,
    coefficient_of_variation,
    conclude,
    median,
    needs_series,
    next_series,
    series_interval,
)
from bench.measure.timeline import Timeline, verify_timeline
from bench.metrics.metric import Metric
from bench.metrics.static_batch import METRICS, latency_s
from bench.report.results import Absent, ArmCell, CellResult, Interval, Summary
from bench.runtimes.base import Session

MIN_WARMUP_RUNS = 2
MAX_WARMUP_RUNS = 6
WARMUP_TOLERANCE = 0.10


@dataclass(frozen=True)
class Warmup:
    """How one arm settled before it was measured."""

    num_runs: int
    is_settled: bool | None


class CellMeasurement:
    """One cell in progress: each series is measured on models that were loaded for it."""

    def __init__(self, cell: Cell, *, rule: StoppingRule, seed: int) -> None:
        self.cell = cell
        self._rule, self._seed = rule, seed
        self._series: list[Series[Timeline]] = []
        self._warmups: list[tuple[Warmup, Warmup]] = []
        self._order = ""
        self._failure: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether nothing more is to be measured."""
        if self._failure is not None:
            return True
        return not needs_series(self._series, duration=seconds_per_output_token, rule=self._rule)

    @property
    def most_pairs(self) -> int:
        """How many pairs the next series has, or may have."""
        return len(self._series[0]) if self._series else self._rule.max_pairs

    def measure_series(
        self, baseline: Session, candidate: Session, *, on_pair: Callable[[], None] = lambda: None
    ) -> None:
        """Warm both models up and measure one series on the cell's prompts; `on_pair` follows every pair.

        A runtime that does other work than the cell asks for is a VerificationError.
        """
        prompts = make_prompts((baseline.vocabulary, candidate.vocabulary), cell=self.cell, seed=self._seed)
        arms = {"A": (baseline, self.cell.baseline), "B": (candidate, self.cell.candidate)}
        first, second = (
            warm_up(session, prompts[: own.batch_size], cell=own) for session, own in arms.values()
        )
        order: list[str] = []

        def measure_pair(index: int) -> tuple[Timeline, Timeline]:
            timelines: dict[str, Timeline] = {}
            for letter in "AB" if index % 2 == 0 else reversed("AB"):
                session, own = arms[letter]
                timelines[letter] = run_once(session, prompts[: own.batch_size], cell=own)
                order.append(letter)
            on_pair()
            return timelines["A"], timelines["B"]

        self._series.append(
            next_series(self._series, measure_pair, duration=seconds_per_output_token, rule=self._rule)
        )
        self._warmups.append((first, second))
        self._order = "".join(order)

    def fail(self, reason: str) -> None:
        """Nothing more is measured; the cell stays in the table with its reason."""
        self._failure = reason

    def result(self) -> CellResult:
        """The finished cell."""
        if self._failure is not None:
            return failed_cell(self.cell, self._failure)
        measurement = conclude(
            self._series[0], self._series[1:], duration=seconds_per_output_token, rule=self._rule
        )
        return summarise(
            measurement,
            cell=self.cell,
            warmups=[_worst(own) for own in zip(*self._warmups, strict=True)],
            order=self._order,
            metrics=METRICS,
            latency=latency_s,
        )


def seconds_per_output_token(timeline: Timeline) -> float:
    """What the speed-up compares: with equal batches its ratio is that of the latencies."""
    return latency_s(timeline) / sum(timeline.num_output_tokens)


def run_once(session: Session, prompts: NDArray[np.int32], *, cell: Cell) -> Timeline:
    """One generation, its tokens counted; a VerificationError when they are not the cell's."""
    return verify_timeline(session.generate(prompts, osl=cell.osl), cell)


def warm_up(session: Session, prompts: NDArray[np.int32], *, cell: Cell) -> Warmup:
    """Run until two successive latencies agree, at least 2 and at most 6 times."""
    previous_s = latency_s(run_once(session, prompts, cell=cell))
    for num_runs in range(MIN_WARMUP_RUNS, MAX_WARMUP_RUNS + 1):
        current_s = latency_s(run_once(session, prompts, cell=cell))
        if abs(current_s - previous_s) <= WARMUP_TOLERANCE * max(current_s, previous_s):
            return Warmup(num_runs, is_settled=True)
        previous_s = current_s
    return Warmup(MAX_WARMUP_RUNS, is_settled=False)


def _worst(warmups: Sequence[Warmup]) -> Warmup:
    """Of one arm's warm-ups, one for every series, the worst in each respect."""
    return Warmup(
        max(warmup.num_runs for warmup in warmups), is_settled=all(warmup.is_settled for warmup in warmups)
    )


def summarise(
    measurement: PairedMeasurement[Sample],
    *,
    cell: Cell,
    warmups: Sequence[Warmup],
    order: str,
    metrics: Sequence[Metric[Sample]],
    latency: Callable[[Sample], float],
) -> CellResult:
    """A finished measurement as a result: medians, spreads, raw samples, ratios, verdict."""
    baseline, candidate = (
        ArmCell(
            num_warmup_runs=warmup.num_runs,
            is_settled=warmup.is_settled,
            exploration_latency_s=tuple(latency(pair[side]) for pair in measurement.exploration),
            metrics={
                metric.name: _summary(metric, [pair[side] for one in measurement.reported for pair in one])
                for metric in metrics
            },
        )
        for side, warmup in enumerate(warmups)
    )
    return _result_of(cell)(
        status=measurement.verdict,
        reason=measurement.reason,
        is_confirmed=bool(measurement.fresh),
        num_series=len(measurement.reported),
        order=order,
        speedup=measurement.interval,
        ratios={metric.name: _ratio(metric, measurement) for metric in metrics},
        baseline=baseline,
        candidate=candidate,
    )


def failed_cell(cell: Cell, reason: str) -> CellResult:
    """A cell without numbers: it stays in the table with its reason."""
    return _result_of(cell)(status="FAIL", reason=reason)


def _result_of(cell: Cell) -> partial[CellResult]:
    """A result with the fields that say which cell it is of."""
    return partial(
        CellResult,
        isl=cell.isl,
        osl=cell.osl,
        batch_size=cell.batch_size,
        candidate_batch_size=cell.candidate_batch_size,
        is_largest=cell.is_largest,
    )


def _summary(metric: Metric[Sample], reported: Sequence[Sample]) -> Summary | Absent:
    samples = _samples(metric, reported)
    if isinstance(samples, Absent):
        return samples
    return Summary(
        median=median(samples),
        cv=coefficient_of_variation(samples),
        minimum=min(samples),
        maximum=max(samples),
        samples=tuple(samples),
    )


def _ratio(metric: Metric[Sample], measurement: PairedMeasurement[Sample]) -> Interval | Absent:
    """Candidate over baseline for rates, the inverse for durations: above 1 the candidate is better."""
    arms: list[list[list[float]]] = []
    for side in range(2):
        arms.append([])
        for series in measurement.reported:
            samples = _samples(metric, [pair[side] for pair in series])
            if isinstance(samples, Absent):
                return samples
            arms[side].append(samples)
    baseline, candidate = arms
    return series_interval(candidate, baseline) if metric.is_rate else series_interval(baseline, candidate)


def _samples(metric: Metric[Sample], reported: Sequence[Sample]) -> list[float] | Absent:
    samples: list[float] = []
    for one in reported:
        value = metric.compute(one)
        if isinstance(value, Absent):
            return value
        samples.append(value)
    return samples
