"""What NVIDIA's management library (NVML) tells of this machine's GPUs."""

from __future__ import annotations

import os
from collections.abc import Callable

import pynvml

from bench.report.results import Gpu

NOT_TOLD = "[N/A]"
_MIB = 1024**2
_FORMS = ("SXM", "PCIe", "NVL")
# Data-centre boards of these names that carry no suffix are SXM modules.
_MODULE_MEMORY = "HBM3"
_ERRORS = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError)


def describe_gpus() -> tuple[Gpu, ...]:
    """Every GPU of the machine, hidden ones included; none where there is no driver."""
    try:
        pynvml.nvmlInit()
    except _ERRORS:
        return ()
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return tuple(_gpu(handle, driver) for handle in handles)
    except _ERRORS:
        return ()
    finally:
        pynvml.nvmlShutdown()


def gpu_form(name: str) -> str | None:
    """How a board is built, as far as its name tells: `NVIDIA H100 PCIe`, `NVIDIA H100 80GB HBM3`."""
    for form in _FORMS:
        if form.lower() in name.lower():
            return form
    return "SXM" if _MODULE_MEMORY in name else None


def _gpu(handle: object, driver: str) -> Gpu:
    def told(read: Callable[[object], object]) -> str:
        """One fact as text; what this board or driver does not tell has a mark of its own."""
        try:
            return str(read(handle))
        except _ERRORS:
            return NOT_TOLD

    name = pynvml.nvmlDeviceGetName(handle)
    return Gpu(
        name=name,
        driver=driver,
        memory_mib=told(lambda gpu: pynvml.nvmlDeviceGetMemoryInfo(gpu).total // _MIB),
        sm_clock_mhz=told(lambda gpu: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM)),
        memory_clock_mhz=told(lambda gpu: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_MEM)),
        power_limit_w=told(lambda gpu: f"{pynvml.nvmlDeviceGetPowerManagementLimit(gpu) / 1000:.2f}"),
        form=gpu_form(name),
        temperature_c=told(lambda gpu: pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU)),
        throttle_reasons=told(lambda gpu: f"0x{_throttle_reasons(gpu):016x}"),
        ecc=told(lambda gpu: _switch(pynvml.nvmlDeviceGetEccMode(gpu)[0])),
        mig=told(lambda gpu: _switch(pynvml.nvmlDeviceGetMigMode(gpu)[0])),
        num_other_processes=_num_other_processes(handle),
    )


def _throttle_reasons(handle: object) -> int:
    """Bits of why the clocks are below their maximum; drivers before R535 call them throttle reasons."""
    try:
        return int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except pynvml.NVMLError_FunctionNotFound:
        return int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


def _num_other_processes(handle: object) -> int | None:
    try:
        pids = [process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    except _ERRORS:
        return None
    return len([pid for pid in pids if pid != os.getpid()])


def _switch(state: int) -> str:
    return "Enabled" if state else "Disabled"
