"""The paired benchmark: every comparison over the whole grid, several times.

Each pass over the grid loads the models anew and adds a series to every cell, so that the series of a cell
differ in all that may differ from one run of the benchmark to another. Speed-up is candidate over baseline
output throughput; as both arms generate the same tokens, that is baseline over candidate latency, sample by
sample. A cell that fails stays in the table with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

from bench.arm_record import record_of
from bench.arms import Arm, Comparison, distinct_arms
from bench.cell import MAX_WARMUP_RUNS, MIN_WARMUP_RUNS, WARMUP_TOLERANCE, CellTrial
from bench.environment import describe_environment, take_snapshot
from bench.grid import Cell, grid_of, wants_largest_batch
from bench.largest_batch import largest_batch
from bench.metrics.catalogue import METRICS
from bench.peak_memory import MemoryProbe, probe_memory
from bench.placement import Processes, placement
from bench.results import (
    CellResult,
    ComparisonResult,
    NotMeasured,
    Protocol,
    Quality,
    Rates,
    Results,
)
from bench.roofline import roofline_of_cell
from bench.runtimes.base import Session, runtime_named
from bench.statistics import CONFIDENCE, MAX_RELATIVE_WIDTH, NUM_SERIES, StoppingRule, stopping_rule
from bench.worker import Seat, WorkerSession
from compressor.console import Console, Tick
from compressor.errors import ResourceError, UnsupportedError, UsageError, VerificationError
from compressor.recipe import Bench

# What may end one cell without ending the benchmark: runtimes raise RuntimeError for nearly everything.
_CELL_FAILURES = (RuntimeError, MemoryError, OSError, ResourceError, UnsupportedError, VerificationError)


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
    """Measure every comparison over the grid.

    Args:
        comparisons: What is compared with what; an arm may occur in several.
        config: Grid and number of pairs.
        console: Progress.
        seed: Of the prompts.
        not_measured: What the reader must know is missing; carried into the results.
        quality: How good the models are; carried along.
        rates: What the machine can do at best, for the roofline.

    Raises:
        UsageError: for two arms of one name, an unknown runtime, a directory of another kind, or
            more pairs demanded than allowed.
        DependencyError: when a runtime is not installed.
    """
    arms = distinct_arms(tuple(comparisons))
    rule = stopping_rule(config)
    _refuse_ambiguous_names(arms)
    for arm in arms:
        runtime_named(arm.runtime).check(arm.path, precision=arm.precision)
    cells, before = grid_of(config), take_snapshot()
    with console.progress("bench: peak memory", len(arms)) as tick:
        probes = {arm.id: _probe(arm, cells=cells, seed=seed, tick=tick) for arm in arms}
    processes, why = placement(config, comparisons, probes, before)
    console.info(f"  bench: {processes} processes: {why}")
    largest = _largest_cells(arms, cells, config, seed=seed, console=console)
    benchmarks = [
        _Benchmark(
            comparison,
            [CellTrial(cell, rule=rule, seed=seed) for cell in cells_of(comparison, cells, largest)],
            probes,
            is_alternating=processes == "alternating",
            console=console,
            rates=rates,
        )
        for comparison in comparisons
    ]
    for number in range(1, NUM_SERIES + 2):
        if pending := [benchmark for benchmark in benchmarks if benchmark.pending]:
            console.info(f"  bench: pass {number} of {NUM_SERIES + 1} over the grid")
        for benchmark in pending:
            benchmark.add_series()
    return Results(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        protocol=_protocol(rule, processes, seed=seed),
        environment=describe_environment(before=before, after=take_snapshot()),
        arms=tuple(record_of(arm, probes[arm.id].peak) for arm in arms),
        comparisons=tuple(benchmark.result() for benchmark in benchmarks),
        not_measured=tuple(not_measured),
        quality=tuple(quality),
        rates=rates,
    )


def cells_of(
    comparison: Comparison, cells: tuple[Cell, ...], largest: dict[tuple[str, int, int], int]
) -> tuple[Cell, ...]:
    """The grid as it applies to one comparison.

    A batch size per model needs two models: one model against itself is measured at both sizes instead.
    `largest` adds one cell of each arm's own largest batch to every pair of lengths, by arm, isl and osl; an
    arm that runs not even one sequence is tried with one, so that the cell stays with its reason.
    """
    baseline, candidate = comparison.arms
    fitting = [
        part
        for cell in cells
        for part in ((cell,) if baseline.model != candidate.model else (cell.baseline, cell.candidate))
    ]
    for isl, osl in dict.fromkeys((cell.isl, cell.osl) for cell in cells):
        sizes = [largest.get((arm.id, isl, osl)) for arm in comparison.arms]
        if sizes != [None, None]:
            own = [size or 1 for size in sizes]
            fitting.append(Cell(isl, osl, own[0], None if own[0] == own[1] else own[1], is_largest=True))
    return tuple({cell: cell for cell in fitting}.values())


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


class _Benchmark:
    """One comparison in progress."""

    def __init__(
        self,
        comparison: Comparison,
        trials: Sequence[CellTrial],
        probes: dict[str, MemoryProbe],
        *,
        is_alternating: bool,
        console: Console,
        rates: Rates | None,
    ) -> None:
        self._comparison, self._trials, self._is_alternating = comparison, trials, is_alternating
        self._console, self._rates, self._seat = console, rates, Seat()
        self._name = f"bench: {comparison.candidate.id} against {comparison.baseline.id}"
        failures = [probes[arm.id].failures for arm in comparison.arms]
        for trial in trials:
            parts = (trial.cell.baseline, trial.cell.candidate)
            known = [own[part] for own, part in zip(failures, parts, strict=True) if part in own]
            if known:  # an arm alone in a process could not run its part
                trial.fail(known[0])

    @property
    def pending(self) -> list[CellTrial]:
        """The cells that need another series."""
        return [trial for trial in self._trials if not trial.is_done]

    def add_series(self) -> None:
        """One series of every pending cell, on models loaded for it and released afterwards."""
        pending = self.pending
        try:
            self._measure(pending, *self._load())
        except _CELL_FAILURES as error:
            for trial in pending:
                trial.fail(self._reason(error))
        finally:
            self._seat.take(None)

    def _measure(self, pending: Sequence[CellTrial], baseline: Session, candidate: Session) -> None:
        for trial in pending:
            name = f"{self._name}, {trial.cell}: pairs, at most"
            with self._console.progress(name, trial.most_pairs) as tick:
                try:
                    trial.measure_series(baseline, candidate, on_pair=tick)
                except _CELL_FAILURES as error:
                    trial.fail(self._reason(error))

    def result(self) -> ComparisonResult:
        """Every cell, failed ones included."""
        cells = tuple(self._with_roofline(trial.result(), trial.cell) for trial in self._trials)
        for cell in cells:
            self._report(cell)
        return ComparisonResult(
            baseline=self._comparison.baseline.id, candidate=self._comparison.candidate.id, cells=cells
        )

    def _with_roofline(self, result: CellResult, cell: Cell) -> CellResult:
        if self._rates is None or result.speedup is None:
            return result
        roofline = roofline_of_cell(*self._comparison.arms, cell=cell, result=result, rates=self._rates)
        return result.model_copy(update={"roofline": roofline})

    def _load(self) -> tuple[Session, Session]:
        baseline, candidate = (
            WorkerSession(arm, self._seat)
            if self._is_alternating
            else runtime_named(arm.runtime).load(arm.path, precision=arm.precision)
            for arm in self._comparison.arms
        )
        return baseline, candidate

    def _reason(self, error: Exception) -> str:
        """The error on one line, directories replaced by the arms' names."""
        text = "; ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__
        for arm in self._comparison.arms:
            text = arm.without_path(text)
        return text

    def _report(self, result: CellResult) -> None:
        cell = result.label
        if result.speedup is None:
            self._console.warn(f"{self._name}, {cell}: FAIL: {result.reason}")
            return
        interval = result.speedup
        self._console.info(
            f"  {self._name}, {cell}: {interval.ratio:.2f}x [{interval.low:.2f}, {interval.high:.2f}]"
            f" from {interval.num_pairs} pairs, {result.status}"
        )


def _probe(arm: Arm, *, cells: tuple[Cell, ...], seed: int, tick: Tick) -> MemoryProbe:
    own = tuple(dict.fromkeys(part for cell in cells for part in (cell.baseline, cell.candidate)))
    probe = probe_memory(arm, cells=own, seed=seed)
    tick(arm.id)
    return probe


def _refuse_ambiguous_names(arms: tuple[Arm, ...]) -> None:
    names = [arm.id for arm in arms]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError("two different models have one name", where="bench", found=", ".join(repeated))


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
        num_series=NUM_SERIES,
        metrics={metric.name: metric.definition for metric in METRICS},
    )
