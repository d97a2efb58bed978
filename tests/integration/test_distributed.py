"""Two processes over gloo: the same course as one, sharded for real, and exact after a kill."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import TIMEOUT_S

SCRIPT = "tests.integration.train_in_processes"
ROOT = Path(__file__).resolve().parents[2]


def launch(out: Path, *arguments: object, processes: int) -> int:
    """Train; returns the exit code."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    done = subprocess.run(
        [sys.executable, *(torchrun if processes > 1 else ()), "-m", SCRIPT, str(out), *map(str, arguments)],
        check=False,
        cwd=ROOT,
        timeout=TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 or arguments[-1], done.stderr
    return done.returncode


def log_of(out: Path) -> dict[str, Any]:
    log: dict[str, Any] = json.loads((out / "log.json").read_text(encoding="utf-8"))
    return log


@pytest.mark.parametrize("tied", ["tied", "untied"])
def test_two_sharded_processes_follow_one(tmp_path: Path, tied: str) -> None:
    launch(tmp_path / "one", tied, "full", 1, 0, processes=1)
    launch(tmp_path / "two", tied, "full", 2, 0, processes=2)
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert len(one["loss"]) == 10
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)
    for name in ("0", "1"):
        assert one["domain_loss"][name] == pytest.approx(two["domain_loss"][name], rel=1e-5)


def test_two_copies_follow_one(tmp_path: Path) -> None:
    launch(tmp_path / "one", "tied", "replicate", 8, 0, processes=1)
    launch(tmp_path / "two", "tied", "replicate", 1, 0, processes=2)
    assert log_of(tmp_path / "one")["loss"] == pytest.approx(log_of(tmp_path / "two")["loss"], rel=1e-5)


def test_a_sharded_run_killed_at_any_step_ends_in_the_same_bytes(tmp_path: Path) -> None:
    launch(tmp_path / "whole", "tied", "full", 2, 0, processes=2)
    step = random.SystemRandom().randint(1, 19)
    assert launch(tmp_path / "killed", "tied", "full", 2, step, processes=2) != 0, f"killed after {step}"
    launch(tmp_path / "killed", "tied", "full", 2, 0, processes=2)
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole"), f"killed after {step}"
    student = "student.safetensors"
    assert (tmp_path / "killed" / student).read_bytes() == (tmp_path / "whole" / student).read_bytes()
