"""The paired benchmark: every comparison over the whole grid, both arms in one process.

Speed-up is candidate over baseline output throughput; as both arms generate the same tokens, that is
baseline over candidate latency, sample by sample. A cell that fails stays in the table with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

from bench.arm_record import record_of
from bench.arms import Arm, Comparison, distinct_arms
from bench.cell import MAX_WARMUP_RUNS, MIN_WARMUP_RUNS, WARMUP_TOLERANCE, measure_cell
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
    measured = [
        _Benchmark(comparison, probes, rule=rule, seed=seed, console=console, rates=rates).run(
            cells_of(comparison, cells, largest), is_alternating=processes == "alternating"
        )
        for comparison in comparisons
    ]
    return Results(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        protocol=_protocol(rule, processes, seed=seed),
        environment=describe_environment(before=before, after=take_snapshot()),
        arms=tuple(record_of(arm, probes[arm.id].peak) for arm in arms),
        comparisons=tuple(measured),
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
        probes: dict[str, MemoryProbe],
        *,
        rule: StoppingRule,
        seed: int,
        console: Console,
        rates: Rates | None,
    ) -> None:
        self._comparison, self._rule, self._seed, self._console = comparison, rule, seed, console
        self._rates, self._seat = rates, Seat()
        self._name = f"bench: {comparison.candidate.id} against {comparison.baseline.id}"
        self._failures = [probes[arm.id].failures for arm in comparison.arms]

    def run(self, cells: tuple[Cell, ...], *, is_alternating: bool) -> ComparisonResult:
        """Every cell, failed ones included; both models are released at the end."""
        loaded = self._load(is_alternating=is_alternating)
        results: list[CellResult] = []
        for cell in cells:
            reason = loaded if isinstance(loaded, str) else self._known_failure(cell)
            if isinstance(loaded, str) or reason is not None:
                result = _failed(cell, str(reason))
            else:
                result = self._with_roofline(self._measure(loaded, cell), cell)
            self._report(result)
            results.append(result)
        self._seat.take(None)
        return ComparisonResult(
            baseline=self._comparison.baseline.id,
            candidate=self._comparison.candidate.id,
            cells=tuple(results),
        )

    def _known_failure(self, cell: Cell) -> str | None:
        """Why a cell is not even tried: an arm alone in a process could not run its part."""
        parts = (cell.baseline, cell.candidate)
        reasons = [failures.get(part) for failures, part in zip(self._failures, parts, strict=True)]
        return next((reason for reason in reasons if reason is not None), None)

    def _with_roofline(self, result: CellResult, cell: Cell) -> CellResult:
        if self._rates is None or result.speedup is None:
            return result
        roofline = roofline_of_cell(*self._comparison.arms, cell=cell, result=result, rates=self._rates)
        return result.model_copy(update={"roofline": roofline})

    def _load(self, *, is_alternating: bool) -> tuple[Session, Session] | str:
        """Both sessions, or why there are none."""
        sessions: list[Session] = []
        try:
            for arm in self._comparison.arms:
                runtime = runtime_named(arm.runtime)
                sessions.append(
                    WorkerSession(arm, self._seat)
                    if is_alternating
                    else runtime.load(arm.path, precision=arm.precision)
                )
        except _CELL_FAILURES as error:
            return self._reason(error)
        return sessions[0], sessions[1]

    def _measure(self, sessions: tuple[Session, Session], cell: Cell) -> CellResult:
        most_pairs = (1 + NUM_SERIES) * self._rule.max_pairs
        with self._console.progress(f"{self._name}, {cell}: pairs, at most", most_pairs) as tick:
            try:
                return measure_cell(*sessions, cell=cell, rule=self._rule, seed=self._seed, on_pair=tick)
            except _CELL_FAILURES as error:
                return _failed(cell, self._reason(error))

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


def _failed(cell: Cell, reason: str) -> CellResult:
    return CellResult(
        isl=cell.isl,
        osl=cell.osl,
        batch_size=cell.batch_size,
        candidate_batch_size=cell.candidate_batch_size,
        is_largest=cell.is_largest,
        status="FAIL",
        reason=reason,
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
