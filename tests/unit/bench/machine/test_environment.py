from __future__ import annotations

from pathlib import Path

import pytest

from bench.machine import environment
from bench.machine.environment import describe_environment, take_snapshot, warn_of_sharing
from bench.report.results import Gpu
from compressor.core.console import Console


def test_the_machine_is_described_without_its_paths() -> None:
    snapshot = take_snapshot()
    described = describe_environment(before=snapshot, after=snapshot)
    assert described.cpu
    assert 1 <= described.num_usable_cores <= described.num_logical_cores
    assert described.memory_bytes > 2**28
    assert described.versions["onnxruntime-genai"] != "absent"
    assert str(Path(environment.__file__).parents[2]) not in described.model_dump_json()


def test_a_container_digest_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_EXPORT_CONTAINER_DIGEST", "sha256:abc")
    snapshot = take_snapshot()
    assert describe_environment(before=snapshot, after=snapshot).container_digest == "sha256:abc"


def test_a_gpu_that_others_use_is_warned_of() -> None:
    free = Gpu(
        name="NVIDIA H100 PCIe",
        driver="580.65",
        memory_mib="81559",
        sm_clock_mhz="1755",
        memory_clock_mhz="1593",
        power_limit_w="350.00",
        num_other_processes=0,
    )
    shared = free.model_copy(update={"num_other_processes": 2})
    unknown = free.model_copy(update={"num_other_processes": None})
    console = Console()
    warn_of_sharing(take_snapshot().model_copy(update={"gpus": (free, shared, unknown)}), console)
    [warning] = console.warnings
    assert "GPU 1 (NVIDIA H100 PCIe) runs 2 other processes" in warning
