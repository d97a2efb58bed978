"""GPU facts, on a stand-in for NVML: the driver's functions answer from here, by the library's own names."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace

import pynvml
import pytest

from bench.machine.gpus import NOT_TOLD, describe_gpus

NAMES = ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA A100-PCIE-40GB", "NVIDIA GB10")
CLOCKS = {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}


def refuse(error: int) -> Callable[..., object]:
    def answer(*_arguments: object) -> object:
        raise pynvml.NVMLError(error)

    return answer


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Four boards; the first also runs another process."""
    answers: dict[str, Callable[..., object]] = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "570.86.15",
        "nvmlDeviceGetCount": lambda: len(NAMES),
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": NAMES.__getitem__,
        "nvmlDeviceGetMemoryInfo": lambda _gpu: SimpleNamespace(total=81559 * 2**20),
        "nvmlDeviceGetClockInfo": lambda _gpu, clock: CLOCKS[clock],
        "nvmlDeviceGetPowerManagementLimit": lambda _gpu: 700_000,
        "nvmlDeviceGetTemperature": lambda _gpu, _sensor: 41,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda _gpu: 4,
        "nvmlDeviceGetEccMode": lambda _gpu: [1, 1],
        "nvmlDeviceGetMigMode": lambda _gpu: [0, 1],
        "nvmlDeviceGetComputeRunningProcesses": lambda gpu: [
            SimpleNamespace(pid=pid) for pid in ([os.getpid(), 1] if gpu == 0 else [])
        ],
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    return monkeypatch


def test_every_fact_is_in_the_units_of_the_record(driver: pytest.MonkeyPatch) -> None:
    gpus = describe_gpus()
    assert [gpu.form for gpu in gpus] == ["SXM", "PCIe", "PCIe", None]
    assert [gpu.num_other_processes for gpu in gpus] == [1, 0, 0, 0]
    assert gpus[0].model_dump(exclude={"form", "num_other_processes"}) == {
        "name": "NVIDIA H100 80GB HBM3",
        "driver": "570.86.15",
        "memory_mib": "81559",
        "sm_clock_mhz": "1980",
        "memory_clock_mhz": "2619",
        "power_limit_w": "700.00",
        "temperature_c": "41",
        "throttle_reasons": "0x0000000000000004",
        "ecc": "Enabled",
        "mig": "Disabled",
    }


def test_an_older_driver_is_asked_by_its_own_name(driver: pytest.MonkeyPatch) -> None:
    missing = refuse(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    driver.setattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", missing)
    driver.setattr(pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons", lambda _gpu: 1)
    assert describe_gpus()[0].throttle_reasons == "0x0000000000000001"


def test_what_a_board_does_not_tell_is_marked(driver: pytest.MonkeyPatch) -> None:
    for name in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetComputeRunningProcesses"):
        driver.setattr(pynvml, name, refuse(pynvml.NVML_ERROR_NOT_SUPPORTED))
    gpu = describe_gpus()[0]
    assert (gpu.memory_mib, gpu.num_other_processes) == (NOT_TOLD, None)


def test_without_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlInit", refuse(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    assert describe_gpus() == ()
