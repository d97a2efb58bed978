"""The paired benchmark: every comparison over the whole grid, several times.

Each pass over the grid loads the models anew and adds a series to every cell, so that the series of a cell
lie a load and some minutes apart. Speed-up is candidate over baseline output throughput; as both arms
generate the same tokens, that is baseline over candidate latency, sample by sample. A cell that fails stays
in the table with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

from bench.design.arms import Arm, Comparison, distinct_arms
from bench.design.cells import NUM_SERIES, cells_of
from bench.design.grid import Cell, grid_of, wants_largest_batch
from bench.machine.environment import describe_environment, take_snapshot, warn_of_sharing
from bench.measure.cell import MAX_WARMUP_RUNS, MIN_WARMUP_RUNS, WARMUP_TOLERANCE, CellMeasurement
from bench.measure.comparison_measurement import ComparisonMeasurement
from bench.measure.largest_batch import largest_batch
from bench.measure.peak_memory import MemoryProbe, probe_memory
from bench.measure.placement import Processes, placement
from bench.measure.statistics import CONFIDENCE, MAX_RELATIVE_WIDTH, StoppingRule, stopping_rule
from bench.metrics.static_batch import METRICS
from bench.report.arm_record import record_of
from bench.report.results import NotMeasured, Protocol, Quality, Rates, Results
from bench.runtimes.base import StaticRuntime
from compressor.choices.runtimes import runtime_named
from compressor.core.console import Console
from compressor.core.errors import UsageError
from compressor.recipe.recipe import Bench


def run_bench(
    comparisons: Sequence[Comparison],
    config: Bench,
    *,
    console: Console,
    seed: int,
    not_measured: Sequence[NotMeasured] = (),
    quality: Sequence[Quality] = (),
    rates: Rates | None = None,
) -> Results:
    """Measure every comparison over the grid; an arm may occur in several.

    `not_measured` and `quality` are carried into the results; `rates` are for the roofline.

    Raises:
        UsageError: for two arms of one name, an unknown runtime, or a directory of another kind.
        DependencyError: when a runtime is not installed.
    """
    arms = distinct_arms(tuple(comparisons))
    rule = stopping_rule(config)
    _refuse_ambiguous_names(arms)
    for arm in arms:
        runtime: StaticRuntime = runtime_named(arm.runtime).load()
        runtime.check(arm.path, precision=arm.precision)
    cells, before = grid_of(config), take_snapshot()
    warn_of_sharing(before, console)
    parts = tuple(dict.fromkeys(part for cell in cells for part in (cell.baseline, cell.candidate)))
    probes: dict[str, MemoryProbe] = {}
    with console.progress("bench: peak memory", len(arms)) as tick:
        for arm in arms:
            probes[arm.id] = probe_memory(arm, cells=parts, seed=seed)
            tick(arm.id)
    processes, why = placement(config, comparisons, probes, before)
    console.info(f"  bench: {processes} processes: {why}")
    largest = _largest_cells(arms, cells, config, seed=seed, console=console)
    measurements = [
        ComparisonMeasurement(
            comparison,
            [CellMeasurement(cell, rule=rule, seed=seed) for cell in cells_of(comparison, cells, largest)],
            probes,
            is_alternating=processes == "alternating",
            console=console,
            rates=rates,
        )
        for comparison in comparisons
    ]
    _run_passes(measurements, rule, console)
    return Results(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        protocol=_protocol(rule, processes, seed=seed),
        environment=describe_environment(before=before, after=take_snapshot()),
        arms=tuple(record_of(arm, probes[arm.id].peak) for arm in arms),
        comparisons=tuple(measurement.result() for measurement in measurements),
        not_measured=tuple(not_measured),
        quality=tuple(quality),
        rates=rates,
    )


def _run_passes(measurements: Sequence[ComparisonMeasurement], rule: StoppingRule, console: Console) -> None:
    """A series of every cell per pass: the one that fixes its length, then the fresh ones."""
    for number in range(1, rule.num_series + 2):
        if pending := [measurement for measurement in measurements if measurement.pending]:
            console.info(f"  bench: pass {number} of {rule.num_series + 1} over the grid")
        for measurement in pending:
            measurement.add_series()


def _largest_cells(
    arms: tuple[Arm, ...], cells: tuple[Cell, ...], config: Bench, *, seed: int, console: Console
) -> dict[tuple[str, int, int], int]:
    """Each arm's largest batch at every pair of lengths; empty where it is not asked for."""
    found: dict[tuple[str, int, int], int] = {}
    if not wants_largest_batch(config):
        return found
    for arm in arms:
        for isl, osl in dict.fromkeys((cell.isl, cell.osl) for cell in cells):
            size = largest_batch(arm, isl=isl, osl=osl, limit=config.batch_limit, seed=seed)
            console.info(f"  bench: {arm.id}, {isl}/{osl}: largest batch {size or 'none'}")
            if size == config.batch_limit:
                console.warn(
                    f"bench: {arm.id}, {isl}/{osl}: the search ended at batch {size} (--batch-limit), "
                    "which may not be the largest"
                )
            found[arm.id, isl, osl] = size or 1
    return found


def _refuse_ambiguous_names(arms: tuple[Arm, ...]) -> None:
    names = [arm.id for arm in arms]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            "two different models have one name",
            where="bench",
            found=", ".join(repeated),
            hint="rename one of the directories: results are kept by name",
        )


def _protocol(rule: StoppingRule, processes: Processes, *, seed: int) -> Protocol:
    return Protocol(
        processes=processes,
        seed=seed,
        min_pairs=rule.min_pairs,
        max_pairs=rule.max_pairs,
        min_warmup_runs=MIN_WARMUP_RUNS,
        max_warmup_runs=MAX_WARMUP_RUNS,
        warmup_tolerance=WARMUP_TOLERANCE,
        confidence=CONFIDENCE,
        max_relative_width=MAX_RELATIVE_WIDTH,
        num_series=rule.num_series,
        is_indicative=rule.num_series < NUM_SERIES,
        metrics={metric.name: metric.definition for metric in METRICS},
    )
