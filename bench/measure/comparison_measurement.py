"""One comparison in progress: at each visit its models are loaded and every cell gets a series."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from bench.design.arms import Arm, Comparison
from bench.design.grid import Cell
from bench.machine.roofline import roofline_of_cell
from bench.measure.cell import CellMeasurement
from bench.measure.child import one_line
from bench.measure.peak_memory import MemoryProbe
from bench.measure.worker import WorkerSession, WorkerSlot
from bench.report.numbers import show_interval
from bench.report.results import CellResult, ComparisonResult, Rates
from bench.runtimes.base import Session, StaticRuntime
from compressor.choices.runtimes import runtime_named
from compressor.core.console import Console
from compressor.core.errors import ResourceError, UnsupportedError, VerificationError

# What may end one cell without ending the benchmark: runtimes raise RuntimeError for nearly everything.
_CELL_FAILURES = (RuntimeError, MemoryError, OSError, ResourceError, UnsupportedError, VerificationError)


class ComparisonMeasurement:
    """One comparison in progress."""

    def __init__(
        self,
        comparison: Comparison,
        measurements: Sequence[CellMeasurement],
        probes: dict[str, MemoryProbe],
        *,
        is_alternating: bool,
        console: Console,
        rates: Rates | None,
    ) -> None:
        self._comparison, self._measurements, self._is_alternating = comparison, measurements, is_alternating
        self._console, self._rates, self._slot = console, rates, WorkerSlot()
        self._name = f"bench: {comparison.candidate.id} against {comparison.baseline.id}"
        failures = [probes[arm.id].failures for arm in comparison.arms]
        for measurement in measurements:
            parts = (measurement.cell.baseline, measurement.cell.candidate)
            known = [own[part] for own, part in zip(failures, parts, strict=True) if part in own]
            if known:  # an arm alone in a process could not run its part
                measurement.fail(known[0])

    @property
    def pending(self) -> list[CellMeasurement]:
        """The cells that need another series."""
        return [measurement for measurement in self._measurements if not measurement.is_done]

    def add_series(self) -> None:
        """One series of every pending cell, on models loaded for it and released afterwards."""
        pending = self.pending
        try:
            self._measure(pending, *self._load())
        except _CELL_FAILURES as error:
            for measurement in pending:
                measurement.fail(self._reason(error))
        finally:
            self._slot.take(None)

    def _measure(self, pending: Sequence[CellMeasurement], baseline: Session, candidate: Session) -> None:
        for measurement in pending:
            name = f"{self._name}, {measurement.cell}: pairs, at most"
            with self._console.progress(name, measurement.most_pairs) as tick:
                try:
                    measurement.measure_series(baseline, candidate, on_pair=tick)
                except _CELL_FAILURES as error:
                    measurement.fail(self._reason(error))

    def result(self) -> ComparisonResult:
        """Every cell, failed ones included."""
        cells = tuple(self._with_roofline(one.result(), one.cell) for one in self._measurements)
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
        if self._is_alternating:
            return self._workers
        baseline, candidate = (_load(arm) for arm in self._comparison.arms)
        return baseline, candidate

    @cached_property
    def _workers(self) -> tuple[Session, Session]:
        """Made once: their processes, and the models in them, begin anew whenever the arm changes."""
        baseline, candidate = (WorkerSession(arm, self._slot) for arm in self._comparison.arms)
        return baseline, candidate

    def _reason(self, error: Exception) -> str:
        return self._comparison.without_paths(one_line(error))

    def _report(self, result: CellResult) -> None:
        name, interval = f"{self._name}, {result.label}", result.speedup
        if interval is None:
            self._console.warn(f"{name}: FAIL: {result.reason}")
            return
        pairs = f"{interval.num_pairs} pairs, {result.status}"
        self._console.info(f"  {name}: {show_interval(interval)} from {pairs}")


def _load(arm: Arm) -> Session:
    runtime: StaticRuntime = runtime_named(arm.runtime).load()
    return runtime.load(arm.path, precision=arm.precision)
