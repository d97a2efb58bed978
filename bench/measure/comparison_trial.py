"""One comparison in progress: at each visit its models are loaded and every cell gets a series."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from bench.design.arms import Comparison
from bench.design.grid import Cell
from bench.machine.roofline import roofline_of_cell
from bench.measure.cell import CellTrial
from bench.measure.peak_memory import MemoryProbe
from bench.measure.worker import Seat, WorkerSession
from bench.report.results import CellResult, ComparisonResult, Rates
from bench.runtimes.base import Session, runtime_named
from compressor.core.console import Console
from compressor.core.errors import ResourceError, UnsupportedError, VerificationError

# What may end one cell without ending the benchmark: runtimes raise RuntimeError for nearly everything.
_CELL_FAILURES = (RuntimeError, MemoryError, OSError, ResourceError, UnsupportedError, VerificationError)


class ComparisonTrial:
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
        if self._is_alternating:
            return self._workers
        baseline, candidate = (
            runtime_named(arm.runtime).load(arm.path, precision=arm.precision)
            for arm in self._comparison.arms
        )
        return baseline, candidate

    @cached_property
    def _workers(self) -> tuple[Session, Session]:
        """Made once: their processes, and the models in them, begin anew whenever the arm changes."""
        baseline, candidate = (WorkerSession(arm, self._seat) for arm in self._comparison.arms)
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
