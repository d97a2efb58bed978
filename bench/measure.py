"""The paired benchmark: every comparison over the whole grid, both arms in one process.

Speed-up is candidate over baseline output throughput; as both arms generate the same tokens, that is
baseline over candidate latency, sample by sample. A cell that fails stays in the table with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

from bench.arms import Arm, Comparison, distinct_arms
from bench.cell import MAX_WARMUP_RUNS, MIN_WARMUP_RUNS, WARMUP_TOLERANCE, measure_cell
from bench.environment import describe_environment, model_files, take_snapshot
from bench.grid import Cell, grid_of
from bench.metrics.catalogue import METRICS
from bench.peak_memory import MemoryProbe, probe_memory
from bench.results import ArmRecord, CellResult, ComparisonResult, NotMeasured, Protocol, Results
from bench.runtimes.base import Session, runtime_named
from bench.statistics import CONFIDENCE, MAX_RELATIVE_WIDTH, StoppingRule
from compressor.console import Console, Tick
from compressor.errors import ResourceError, UsageError, VerificationError
from compressor.recipe import Bench

# What may end one cell without ending the benchmark: runtimes raise RuntimeError for nearly everything.
_CELL_FAILURES = (RuntimeError, MemoryError, OSError, ResourceError, VerificationError)


def run_bench(
    comparisons: Sequence[Comparison],
    config: Bench,
    *,
    console: Console,
    seed: int,
    not_measured: Sequence[NotMeasured] = (),
) -> Results:
    """Measure every comparison over the grid.

    Args:
        comparisons: What is compared with what; an arm may occur in several.
        config: Grid and number of pairs.
        console: Progress.
        seed: Of the prompts.
        not_measured: What the reader must know is missing; carried into the results.

    Raises:
        UsageError: for two arms of one name, an unknown runtime, a directory of another kind, or
            more pairs demanded than allowed.
        DependencyError: when a runtime is not installed.
    """
    arms = distinct_arms(tuple(comparisons))
    rule = _stopping_rule(config)
    _refuse_ambiguous_names(arms)
    for arm in arms:
        runtime_named(arm.runtime).check(arm.path)
    cells, before = grid_of(config), take_snapshot()
    with console.progress("bench: peak memory", len(arms)) as tick:
        probes = {arm.id: _probe(arm, cells=cells, seed=seed, tick=tick) for arm in arms}
    measured = [
        _Benchmark(comparison, probes, rule=rule, seed=seed, console=console).run(cells)
        for comparison in comparisons
    ]
    return Results(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        protocol=_protocol(rule, seed=seed),
        environment=describe_environment(before=before, after=take_snapshot()),
        arms=tuple(_arm_record(arm, probes[arm.id]) for arm in arms),
        comparisons=tuple(measured),
        not_measured=tuple(not_measured),
    )


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
    ) -> None:
        self._comparison, self._rule, self._seed, self._console = comparison, rule, seed, console
        self._name = f"bench: {comparison.candidate.id} against {comparison.baseline.id}"
        self._failures = {
            cell: reason for arm in comparison.arms for cell, reason in probes[arm.id].failures.items()
        }

    def run(self, cells: tuple[Cell, ...]) -> ComparisonResult:
        """Every cell, failed ones included; both models are released at the end."""
        loaded = self._load()
        results: list[CellResult] = []
        for cell in cells:
            if isinstance(loaded, str) or cell in self._failures:
                reason = loaded if isinstance(loaded, str) else self._failures[cell]
                result = _failed(cell, reason)
            else:
                result = self._measure(loaded, cell)
            self._report(result)
            results.append(result)
        return ComparisonResult(
            baseline=self._comparison.baseline.id,
            candidate=self._comparison.candidate.id,
            cells=tuple(results),
        )

    def _load(self) -> tuple[Session, Session] | str:
        """Both sessions, or why there are none."""
        try:
            baseline, candidate = (runtime_named(arm.runtime).load(arm.path) for arm in self._comparison.arms)
        except _CELL_FAILURES as error:
            return self._reason(error)
        return baseline, candidate

    def _measure(self, sessions: tuple[Session, Session], cell: Cell) -> CellResult:
        most_pairs = 2 * self._rule.max_pairs
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
        cell = Cell(result.isl, result.osl, result.batch_size)
        if result.speedup is None:
            self._console.warn(f"{self._name}, {cell}: FAIL: {result.reason}")
            return
        interval = result.speedup
        self._console.info(
            f"  {self._name}, {cell}: {interval.ratio:.2f}x [{interval.low:.2f}, {interval.high:.2f}]"
            f" from {interval.num_pairs} pairs, {result.status}"
        )


def _failed(cell: Cell, reason: str) -> CellResult:
    return CellResult(isl=cell.isl, osl=cell.osl, batch_size=cell.batch_size, status="FAIL", reason=reason)


def _probe(arm: Arm, *, cells: tuple[Cell, ...], seed: int, tick: Tick) -> MemoryProbe:
    probe = probe_memory(arm, cells=cells, seed=seed)
    tick(arm.id)
    return probe


def _stopping_rule(config: Bench) -> StoppingRule:
    try:
        return StoppingRule(min_pairs=config.min_pairs, max_pairs=config.max_pairs)
    except ValueError as error:
        raise UsageError("these numbers of pairs cannot be met", where="bench", found=error) from error


def _refuse_ambiguous_names(arms: tuple[Arm, ...]) -> None:
    names = [arm.id for arm in arms]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError("two different models have one name", where="bench", found=", ".join(repeated))


def _protocol(rule: StoppingRule, *, seed: int) -> Protocol:
    return Protocol(
        seed=seed,
        min_pairs=rule.min_pairs,
        max_pairs=rule.max_pairs,
        min_warmup_runs=MIN_WARMUP_RUNS,
        max_warmup_runs=MAX_WARMUP_RUNS,
        warmup_tolerance=WARMUP_TOLERANCE,
        confidence=CONFIDENCE,
        max_relative_width=MAX_RELATIVE_WIDTH,
        metrics={metric.name: metric.definition for metric in METRICS},
    )


def _arm_record(arm: Arm, probe: MemoryProbe) -> ArmRecord:
    return ArmRecord(
        id=arm.id,
        model=arm.model,
        precision=arm.precision,
        runtime=arm.runtime,
        num_parameters=arm.num_parameters,
        files=model_files(arm),
        peak_memory=probe.peak,
    )
