"""A sample of `make faults`: kills, full and read-only disks, second runs and harm, in stages of a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.__main__ import UNSUPPORTED
from tests.integration.command import TIMEOUT_S

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(2 * TIMEOUT_S)
def test_a_sample_of_faults_changes_no_byte() -> None:
    """In a process of its own, which forks warm ones; the other core is another test's."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--sample", "--workers", "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT_S,
        check=False,
    )
    if done.returncode == UNSUPPORTED:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "points behaved" in done.stdout
