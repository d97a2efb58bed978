from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.design.arms import Comparison
from bench.design.grid import Cell
from bench.measure import peak_memory
from bench.measure.peak_memory import probe_memory
from bench.report.results import Absent, PeakMemory

TOO_LONG = Cell(60, 60, 1)
REPOSITORY = Path(peak_memory.__file__).parents[2]


def test_the_largest_cell_that_runs_is_measured_and_larger_ones_say_why_not(comparison: Comparison) -> None:
    probe = probe_memory(comparison.baseline, cells=(Cell(4, 4, 1), TOO_LONG, Cell(8, 8, 2)), seed=0)
    assert isinstance(probe.peak, PeakMemory)
    assert (probe.peak.isl, probe.peak.osl, probe.peak.batch_size) == (8, 8, 2)
    assert probe.peak.peak_bytes > probe.peak.baseline_bytes > 0
    assert list(probe.failures) == [TOO_LONG]
    assert "context_length" in probe.failures[TOO_LONG]


def test_without_any_cell_that_runs_the_peak_is_absent(comparison: Comparison) -> None:
    probe = probe_memory(comparison.baseline, cells=(TOO_LONG,), seed=0)
    assert isinstance(probe.peak, Absent)


def test_a_folder_called_bench_in_the_working_directory_does_not_get_in_the_way(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    probe = probe_memory(comparison.baseline, cells=(Cell(4, 4, 1),), seed=0)
    assert isinstance(probe.peak, PeakMemory)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc/self/status")
def test_a_large_parent_does_not_raise_the_peak_of_its_child() -> None:
    ballast = np.ones(512 * 2**20, dtype=np.int8)
    program = "from bench.measure.peak_memory import peak_resident_bytes; print(peak_resident_bytes())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert ballast.all()
    assert 0 < int(done.stdout) < ballast.nbytes


def test_a_child_ended_by_the_kernel_is_reported_as_such(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], returncode=-9, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", killed)
    probe = probe_memory(comparison.baseline, cells=(Cell(4, 4, 1),), seed=0)
    assert "SIGKILL, most likely for lack of memory" in probe.failures[Cell(4, 4, 1)]


def test_reasons_hold_no_path_of_the_machine(comparison: Comparison) -> None:
    arm = comparison.baseline
    assert (
        arm.without_path(f"cannot open {arm.path}{os.sep}model.onnx") == "cannot open teacher-fp32/model.onnx"
    )
