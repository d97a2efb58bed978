"""Arms in processes of their own, on real, tiny graphs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from bench.design.arms import Comparison
from bench.design.grid import Cell
from bench.measure.measure import run_bench
from bench.measure.statistics import NUM_SERIES, StoppingRule
from bench.measure.timeline import verify_timeline
from bench.measure.worker import WorkerSession, WorkerSlot
from compressor.core.console import Console
from compressor.core.errors import ResourceError
from compressor.recipe.recipe import Bench

CELL = Cell(isl=8, osl=4, batch_size=2)
PROMPTS = np.ones((2, 8), dtype=np.int32)


def workers() -> list[psutil.Process]:
    """Live child processes that hold a model; one that ended and was not yet waited for holds nothing."""
    return [child for child in psutil.Process().children() if "bench.measure.worker" in command_line(child)]


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # a ZombieProcess is one too
        return []


def test_only_one_model_is_alive_at_a_time(comparison: Comparison) -> None:
    slot = WorkerSlot()
    baseline, candidate = (WorkerSession(arm, slot) for arm in comparison.arms)
    for session in (baseline, candidate, candidate, baseline):
        verify_timeline(session.generate(PROMPTS, osl=4), CELL)
        assert len(workers()) == 1
    slot.take(None)
    assert len(workers()) == 0


def test_the_runtimes_errors_come_back(comparison: Comparison) -> None:
    slot = WorkerSlot()
    session = WorkerSession(comparison.baseline, slot)
    with pytest.raises(RuntimeError, match="context_length"):
        session.generate(np.ones((1, 60), dtype=np.int32), osl=60)
    slot.take(None)


def test_a_model_that_does_not_load_says_so(comparison: Comparison, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="genai_config"):
        WorkerSession(replace(comparison.baseline, path=tmp_path), WorkerSlot())
    assert len(workers()) == 0, "its process is ended"


def test_a_process_that_dies_fails_one_run_and_the_next_begins_anew(comparison: Comparison) -> None:
    slot = WorkerSlot()
    session = WorkerSession(comparison.baseline, slot)
    for child in workers():
        child.kill()
    with pytest.raises(ResourceError, match=r"ended by SIGKILL, most likely for lack of memory"):
        session.generate(PROMPTS, osl=4)
    assert len(workers()) == 0
    verify_timeline(session.generate(PROMPTS, osl=4), CELL)
    slot.take(None)


def test_a_process_that_gives_up_leaves_its_last_words(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho first >&2\necho no such library >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr("bench.measure.worker.sys.executable", str(script))
    with pytest.raises(ResourceError, match="exit code 3: no such library"):
        WorkerSession(comparison.baseline, WorkerSlot())


def test_a_whole_benchmark_alternates_and_starts_no_process_in_vain(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both models tell their vocabulary once; a series warms A, warms B, and runs A, B B, A."""
    started: list[str] = []
    start = WorkerSession.start

    def counted(self: WorkerSession) -> None:
        started.append(self._arm.model)
        start(self)

    monkeypatch.setattr(WorkerSession, "start", counted)
    narrow = StoppingRule(min_pairs=2, max_pairs=2, max_relative_width=math.inf)
    monkeypatch.setattr("bench.measure.measure.stopping_rule", lambda _config: narrow)
    config = Bench(isl_osl=((8, 4),), batch_sizes=(1,), processes="alternating")
    results = run_bench([comparison], config, console=Console(), seed=0)
    assert results.protocol.processes == "alternating"
    (cell,) = results.comparisons[0].cells
    assert (cell.status, cell.num_series) == ("ok", NUM_SERIES)
    a, b = (arm.model for arm in comparison.arms)
    assert started == [a, b] + [a, b, a, b, a] * (1 + NUM_SERIES)
    assert len(workers()) == 0
