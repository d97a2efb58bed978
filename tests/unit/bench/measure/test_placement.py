"""Where the arms of a comparison run, from peaks written by hand."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from bench.design.arms import Arm, Comparison
from bench.measure.peak_memory import MemoryProbe
from bench.measure.placement import placement
from bench.report.results import Absent, PeakMemory, Snapshot
from compressor.recipe.recipe import Bench
from tests.unit.bench.results_by_hand import gpu

GIB = 2**30
MACHINE = Snapshot(load_average=(0.0, 0.0, 0.0), cpu_clock_mhz=None, gpus=(gpu(memory_mib="81920"),))
SHARED_MEMORY = Snapshot(load_average=(0.0, 0.0, 0.0), cpu_clock_mhz=None, gpus=(gpu(memory_mib="[N/A]"),))
CPU_ONLY = MACHINE.model_copy(update={"gpus": ()})


def arm(name: str) -> Arm:
    return Arm(id=name, model=name, precision="bf16", path=Path(), runtime="torch", num_parameters=1)


PAIR = Comparison(baseline=arm("teacher"), candidate=arm("student"))


def probes(teacher: PeakMemory | Absent, student: PeakMemory) -> dict[str, MemoryProbe]:
    return {"teacher": MemoryProbe(peak=teacher), "student": MemoryProbe(peak=student)}


def peak(host_gib: int, device_gib: int | None = None) -> PeakMemory:
    device = None if device_gib is None else device_gib * GIB
    return PeakMemory(
        isl=1, osl=1, batch_size=1, peak_bytes=(host_gib + 1) * GIB, baseline_bytes=GIB, device_bytes=device
    )


@pytest.fixture(autouse=True)
def sixteen_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = psutil.virtual_memory()._replace(available=16 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


@pytest.mark.parametrize(
    ("teacher", "student", "machine", "expected"),
    [
        (peak(7), peak(7), CPU_ONLY, "shared"),
        (peak(8), peak(7), CPU_ONLY, "alternating"),
        (peak(1, 40), peak(1, 30), MACHINE, "shared"),
        (peak(1, 60), peak(1, 30), MACHINE, "alternating"),
        (peak(1, 6), peak(1, 6), SHARED_MEMORY, "shared"),
        (peak(1, 12), peak(1, 6), SHARED_MEMORY, "alternating"),
        (Absent(absent="no cell ran"), peak(7), CPU_ONLY, "shared"),
    ],
)
def test_arms_share_a_process_only_where_both_fit(
    teacher: PeakMemory | Absent, student: PeakMemory, machine: Snapshot, expected: str
) -> None:
    assert placement(Bench(), [PAIR], probes(teacher, student), machine)[0] == expected


@pytest.mark.parametrize("config", [Bench(processes="alternating"), Bench(largest_batch=True)])
def test_arms_take_turns_on_demand_and_at_their_largest_batch(config: Bench) -> None:
    assert placement(config, [PAIR], probes(peak(1), peak(1)), CPU_ONLY)[0] == "alternating"
