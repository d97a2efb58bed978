"""The concurrency experiment: a fixed number of requests in flight, through `trtllm-bench`.

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
from bench.measure.statistics import (
    CONFIDENCE,
    MAX_RELATIVE_WIDTH,
    NUM_SERIES,
    StoppingRule,
    paired_trial,
    stopping_rule,
)
from bench.metrics.serving import SERVING_METRICS
from bench.report.arm_record import record_of
from bench.report.results import (
    AbsentRecord,
    CellResult,
    ComparisonResult,
    NotMeasured,
    Protocol,
    Results,
)
from bench.runtimes.tensorrt_llm import NUM_WARMUP_REQUESTS, Load, ServingRun, TensorrtLlm
from compressor.core.console import Console
from compressor.core.errors import CompressExportError, ResourceError, UsageError, VerificationError
from compressor.recipe.recipe import Bench

_NO_PEAK = AbsentRecord(absent="the server's memory is its own: a fixed share of the GPU for its cache")
Serve = Callable[[Arm, Load], ServingRun]


def run_serving(
    comparisons: Sequence[Comparison],
    config: Bench,
    *,
    console: Console,
    seed: int,
    not_measured: Sequence[NotMeasured] = (),
) -> Results:
    """Measure every comparison at every pair of lengths and concurrency.

    Raises:
        UsageError, DependencyError: when a model cannot be served here at all.
    """
    runtime = TensorrtLlm()
    arms = distinct_arms(tuple(comparisons))
    for arm in arms:
        runtime.check(arm.path, engine=arm.engine)
    vocab_size = _vocab_size(arms)
    rule = stopping_rule(config)
    before = take_snapshot()

    def serve(arm: Arm, load: Load) -> ServingRun:
        return runtime.serve(arm.path, load, vocab_size=vocab_size, seed=seed, engine=arm.engine)

    measured = tuple(
        ComparisonResult(
            baseline=comparison.baseline.id,
            candidate=comparison.candidate.id,
            cells=tuple(
                measure_load(comparison, load, serve=serve, rule=rule, console=console)
                for load in loads_of(config)
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
            raise UsageError("the vocabulary of this model is not known", where=arm.id)
    return min(arm.dims.vocab_size for arm in arms if arm.dims)


def loads_of(config: Bench) -> tuple[Load, ...]:
    """Every pair of lengths, or those of the preset, at every concurrency."""
    return tuple(
        Load(isl=isl, osl=osl, concurrency=concurrency, num_requests=config.num_requests)
        for isl, osl in dict.fromkeys((cell.isl, cell.osl) for cell in grid_of(config))
        for concurrency in config.concurrency
    )


def measure_load(
    comparison: Comparison, load: Load, *, serve: Serve, rule: StoppingRule, console: Console
) -> CellResult:
    """One cell; a failure keeps its line with the reason. `batch_size` holds the concurrency."""
    cell = Cell(load.isl, load.osl, load.concurrency)
    order: list[str] = []

    def measure_pair(index: int) -> tuple[ServingRun, ServingRun]:
        if index == 0:
            order.clear()
        runs: dict[str, ServingRun] = {}
        for letter in "AB" if index % 2 == 0 else reversed("AB"):
            arm = comparison.baseline if letter == "A" else comparison.candidate
            runs[letter] = serve(arm, load)
            order.append(letter)
        return runs["A"], runs["B"]

    try:
        trial = paired_trial(measure_pair, duration=_seconds_per_token, rule=rule)
    except (ResourceError, VerificationError) as error:
        reason = _reason(error, comparison)
        console.warn(f"bench: {comparison.candidate.id}, {cell} in flight: FAIL: {reason}")
        return failed_cell(cell, reason)
    warmups = [Warmup(load.num_warmup_requests, is_settled=None)] * 2
    return summarise(
        trial,
        cell=cell,
        warmups=warmups,
        order="".join(order),
        metrics=SERVING_METRICS,
        latency=lambda run: run.latency_s,
    )


def _seconds_per_token(run: ServingRun) -> float:
    return 1 / run.output_tokens_per_s


def _reason(error: CompressExportError, comparison: Comparison) -> str:
    text = "; ".join(line.strip() for line in str(error).splitlines())
    for arm in comparison.arms:
        text = arm.without_path(text)
    return text


def _protocol(rule: StoppingRule, *, seed: int, concurrency: Sequence[int]) -> Protocol:
    return Protocol(
        mode="concurrency",
        processes="alternating",
        seed=seed,
        min_pairs=rule.min_pairs,
        max_pairs=rule.max_pairs,
        min_warmup_runs=NUM_WARMUP_REQUESTS,
        max_warmup_runs=max(NUM_WARMUP_REQUESTS, *concurrency),
        warmup_tolerance=0.0,
        confidence=CONFIDENCE,
        max_relative_width=MAX_RELATIVE_WIDTH,
        num_series=NUM_SERIES,
        metrics={metric.name: metric.definition for metric in SERVING_METRICS},
    )
