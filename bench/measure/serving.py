"""The concurrency experiment: a fixed number of requests in flight, through a `ServingRuntime`.

It is not the static-batch experiment and never shares a table with it: batches form and dissolve inside
the server, as they do in deployment. Every run is a process of its own, so the arms alternate A B B A as
processes, and the statistics are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from bench.design.arms import Arm, Comparison, distinct_arms
from bench.design.cells import MIN_WARMUP_REQUESTS, NUM_SERVED_SERIES, cells_of
from bench.design.grid import Cell, in_flight, served_cells
from bench.machine.environment import describe_environment, take_snapshot, warn_of_sharing
from bench.measure.cell import Warmup, failed_cell, summarise
from bench.measure.child import one_line
from bench.measure.statistics import (
    CONFIDENCE,
    MAX_RELATIVE_WIDTH,
    StoppingRule,
    measure_in_pairs,
    stopping_rule,
)
from bench.metrics.serving import SERVING_METRICS
from bench.report.arm_record import record_of
from bench.report.results import (
    Absent,
    CellResult,
    ComparisonResult,
    NotMeasured,
    Protocol,
    Quality,
    Results,
)
from bench.runtimes.base import Requests, ServingRun, ServingRuntime
from compressor.choices.runtimes import runtime_named
from compressor.core.console import Console
from compressor.core.errors import ResourceError, UsageError, VerificationError
from compressor.recipe.recipe import Bench

_NO_PEAK = Absent(absent="the server's memory is its own: a fixed share of the GPU for its cache")
Serve = Callable[[Arm, Requests], ServingRun]


def run_serving(
    comparisons: Sequence[Comparison],
    config: Bench,
    *,
    console: Console,
    seed: int,
    not_measured: Sequence[NotMeasured] = (),
    quality: Sequence[Quality] = (),
) -> Results:
    """Measure every comparison at every pair of lengths and concurrency.

    A model that cannot be served here at all is a UsageError or a DependencyError.
    """
    arms = distinct_arms(tuple(comparisons))
    runtimes: dict[str, ServingRuntime] = {arm.id: runtime_named(arm.runtime).load() for arm in arms}
    for arm in arms:
        runtimes[arm.id].check(arm.path, engine=arm.engine)
    vocab_size = _vocab_size(arms)
    rule = replace(stopping_rule(config), num_series=NUM_SERVED_SERIES)
    before = take_snapshot()
    warn_of_sharing(before, console)

    def serve(arm: Arm, requests: Requests) -> ServingRun:
        return runtimes[arm.id].serve(arm.path, requests, vocab_size=vocab_size, seed=seed, engine=arm.engine)

    measured = tuple(
        ComparisonResult(
            baseline=comparison.baseline.id,
            candidate=comparison.candidate.id,
            cells=tuple(
                measure_requests(comparison, load, serve=serve, rule=rule, console=console)
                for load in loads_of(comparison, config)
            ),
        )
        for comparison in comparisons
    )
    return Results(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        protocol=_protocol(rule, seed=seed, config=config),
        environment=describe_environment(before=before, after=take_snapshot()),
        arms=tuple(record_of(arm, _NO_PEAK) for arm in arms),
        comparisons=measured,
        not_measured=tuple(not_measured),
        quality=tuple(quality),
    )


def _vocab_size(arms: Sequence[Arm]) -> int:
    """Token ids that every arm knows."""
    for arm in arms:
        if arm.dims is None:
            raise UsageError(
                "the vocabulary size of this model is not known",
                where=arm.id,
                hint="set model_type (a supported one) and vocab_size in its config.json",
            )
    return min(arm.dims.vocab_size for arm in arms if arm.dims)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of both arms in one cell; `cell` holds the numbers of requests in flight."""

    cell: Cell
    baseline: Requests
    candidate: Requests


def loads_of(comparison: Comparison, config: Bench) -> tuple[Load, ...]:
    """Every pair of lengths, or those of the preset, at every number of requests in flight.

    A number per model needs two models: one model against itself is measured at both instead.
    """

    def requests(cell: Cell) -> Requests:
        return Requests(
            isl=cell.isl,
            osl=cell.osl,
            concurrency=cell.batch_size,
            num_requests=config.requests_per_run(cell.batch_size),
            timeout_s=config.timeout_s,
        )

    return tuple(
        Load(cell=cell, baseline=requests(cell.baseline), candidate=requests(cell.candidate))
        for cell in cells_of(comparison, served_cells(config), {})
    )


def measure_requests(
    comparison: Comparison, load: Load, *, serve: Serve, rule: StoppingRule, console: Console
) -> CellResult:
    """One cell; a failure keeps its line with the reason. `batch_size` holds the concurrency."""
    cell = load.cell
    order: list[str] = []

    def measure_pair(index: int) -> tuple[ServingRun, ServingRun]:
        if index == 0:
            order.clear()
        runs: dict[str, ServingRun] = {}
        for letter in "AB" if index % 2 == 0 else reversed("AB"):
            is_baseline = letter == "A"
            arm = comparison.baseline if is_baseline else comparison.candidate
            runs[letter] = serve(arm, load.baseline if is_baseline else load.candidate)
            order.append(letter)
        return runs["A"], runs["B"]

    try:
        measurement = measure_in_pairs(measure_pair, duration=_seconds_per_token, rule=rule)
    except (ResourceError, VerificationError) as error:
        reason = comparison.without_paths(one_line(error))
        console.warn(f"bench: {comparison.candidate.id}, {cell} in flight: FAIL: {reason}")
        return failed_cell(cell, reason)
    warmups = [Warmup(own.num_warmup_requests, is_settled=None) for own in (load.baseline, load.candidate)]
    return summarise(
        measurement,
        cell=cell,
        warmups=warmups,
        order="".join(order),
        metrics=SERVING_METRICS,
        latency=lambda run: run.latency_s,
    )


def _seconds_per_token(run: ServingRun) -> float:
    return 1 / run.output_tokens_per_s


def _protocol(rule: StoppingRule, *, seed: int, config: Bench) -> Protocol:
    return Protocol(
        mode="concurrency",
        processes="alternating",
        seed=seed,
        min_pairs=rule.min_pairs,
        max_pairs=rule.max_pairs,
        min_warmup_runs=MIN_WARMUP_REQUESTS,
        max_warmup_runs=max(MIN_WARMUP_REQUESTS, *(number for pair in in_flight(config) for number in pair)),
        warmup_tolerance=0.0,
        confidence=CONFIDENCE,
        max_relative_width=MAX_RELATIVE_WIDTH,
        num_series=rule.num_series,
        metrics={metric.name: metric.definition for metric in SERVING_METRICS},
    )
