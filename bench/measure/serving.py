"""The concurrency experiment: a fixed number of requests in flight, through a `ServingRuntime`.

It is not the static-batch experiment and never shares a table with it: batches form and dissolve inside
the server, as they do in deployment. Every run is a process of its own, so the arms alternate A B B A as
processes, and the statistics are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone

from bench.design.arms import Arm, Comparison, distinct_arms
from bench.design.grid import Cell, grid_of
from bench.machine.environment import describe_environment, take_snapshot
from bench.measure.cell import Warmup, failed_cell, summarise
from bench.measure.child import one_line
from bench.measure.statistics import (
    CONFIDENCE,
    MAX_RELATIVE_WIDTH,
    NUM_SERIES,
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
    Results,
)
from bench.runtimes.base import MIN_WARMUP_REQUESTS, Requests, ServingRun, ServingRuntime
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
) -> Results:
    """Measure every comparison at every pair of lengths and concurrency.

    A model that cannot be served here at all is a UsageError or a DependencyError.
    """
    arms = distinct_arms(tuple(comparisons))
    runtimes: dict[str, ServingRuntime] = {arm.id: runtime_named(arm.runtime).load() for arm in arms}
    for arm in arms:
        runtimes[arm.id].check(arm.path, engine=arm.engine)
    vocab_size = _vocab_size(arms)
    rule = stopping_rule(config)
    before = take_snapshot()

    def serve(arm: Arm, requests: Requests) -> ServingRun:
        return runtimes[arm.id].serve(arm.path, requests, vocab_size=vocab_size, seed=seed, engine=arm.engine)

    measured = tuple(
        ComparisonResult(
            baseline=comparison.baseline.id,
            candidate=comparison.candidate.id,
            cells=tuple(
                measure_requests(comparison, requests, serve=serve, rule=rule, console=console)
                for requests in requests_of(config)
            ),
        )
        for comparison in comparisons
    )
    return Results(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        protocol=_protocol(rule, seed=seed, concurrency=config.concurrency),
        environment=describe_environment(before=before, after=take_snapshot()),
        arms=tuple(record_of(arm, _NO_PEAK) for arm in arms),
        comparisons=measured,
        not_measured=tuple(not_measured),
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


def requests_of(config: Bench) -> tuple[Requests, ...]:
    """Every pair of lengths, or those of the preset, at every concurrency."""
    return tuple(
        Requests(isl=isl, osl=osl, concurrency=concurrency, num_requests=config.num_requests)
        for isl, osl in dict.fromkeys((cell.isl, cell.osl) for cell in grid_of(config))
        for concurrency in config.concurrency
    )


def measure_requests(
    comparison: Comparison, requests: Requests, *, serve: Serve, rule: StoppingRule, console: Console
) -> CellResult:
    """One cell; a failure keeps its line with the reason. `batch_size` holds the concurrency."""
    cell = Cell(requests.isl, requests.osl, requests.concurrency)
    order: list[str] = []

    def measure_pair(index: int) -> tuple[ServingRun, ServingRun]:
        if index == 0:
            order.clear()
        runs: dict[str, ServingRun] = {}
        for letter in "AB" if index % 2 == 0 else reversed("AB"):
            arm = comparison.baseline if letter == "A" else comparison.candidate
            runs[letter] = serve(arm, requests)
            order.append(letter)
        return runs["A"], runs["B"]

    try:
        measurement = measure_in_pairs(measure_pair, duration=_seconds_per_token, rule=rule)
    except (ResourceError, VerificationError) as error:
        reason = comparison.without_paths(one_line(error))
        console.warn(f"bench: {comparison.candidate.id}, {cell} in flight: FAIL: {reason}")
        return failed_cell(cell, reason)
    warmups = [Warmup(requests.num_warmup_requests, is_settled=None)] * 2
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


def _protocol(rule: StoppingRule, *, seed: int, concurrency: Sequence[int]) -> Protocol:
    return Protocol(
        mode="concurrency",
        processes="alternating",
        seed=seed,
        min_pairs=rule.min_pairs,
        max_pairs=rule.max_pairs,
        min_warmup_runs=MIN_WARMUP_REQUESTS,
        max_warmup_runs=max(MIN_WARMUP_REQUESTS, *concurrency),
        warmup_tolerance=0.0,
        confidence=CONFIDENCE,
        max_relative_width=MAX_RELATIVE_WIDTH,
        num_series=NUM_SERIES,
        metrics={metric.name: metric.definition for metric in SERVING_METRICS},
    )
