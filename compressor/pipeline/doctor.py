"""What this machine can do: versions against both dependency sets, GPU, engine builder, disk, hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import packaging.requirements
from packaging.specifiers import SpecifierSet
from pydantic import Field

from compressor.core.errors import DependencyError
from compressor.core.hardware import Machine, describe, free_disk_bytes
from compressor.core.records import Record
from exporters.tensorrt_llm.versions import find_builder

DISTRIBUTION = "compress-export"
# What the TensorRT-LLM 1.2.1 release container holds; 1.2.1 is the last stable line with engines.
CONTAINER_SET = {
    "torch": ">=2.9.1,<=2.10.0a0",
    "transformers": "==4.57.3",
    "nvidia-modelopt": "~=0.37.0",
    "onnx": ">=1.18,<1.20",
    "numpy": "<2",
    "datasets": "==3.1.0",
}
FP8_CAPABILITY = (8, 9)
SPARSITY_CAPABILITY = (8, 0)
_HUB_TIMEOUT_S = 5


class Requirement(Record):
    """A library that is needed, and whether what is installed fits."""

    name: str
    required: str
    installed: str | None
    ok: bool


class GpuRecord(Record):
    """A GPU, and which kernels it has."""

    name: str
    compute_capability: str
    memory_bytes: int
    fp8: bool
    sparsity_2_4: bool


class BuilderRecord(Record):
    """TensorRT-LLM's engine builder: its version, or why there is none."""

    version: str | None = None
    reason: str | None = None


class HubRecord(Record):
    """Whether the hub can be reached, else why not; and whether a token is set."""

    reachable: bool
    reason: str | None = None
    has_token: bool


class DoctorReport(Record):
    """Everything that was looked at."""

    schema_id: Literal["compress-export/doctor/2"] = Field("compress-export/doctor/2", alias="schema")
    machine: Machine
    free_disk_bytes: int
    dependencies: tuple[Requirement, ...]
    tensorrt_llm_container_set: tuple[Requirement, ...]
    gpus: tuple[GpuRecord, ...]
    trtllm_build: BuilderRecord
    hub: HubRecord


def examine() -> DoctorReport:
    """Look at everything once; nothing is changed."""
    return DoctorReport(
        machine=describe(),
        free_disk_bytes=free_disk_bytes(Path.cwd()),
        dependencies=tuple(_declared()),
        tensorrt_llm_container_set=tuple(_check(name, spec) for name, spec in CONTAINER_SET.items()),
        gpus=tuple(_gpus()),
        trtllm_build=_engine_builder(),
        hub=_hub(),
    )


def _declared() -> Iterator[Requirement]:
    """The installed distribution's own requirements, extras left out."""
    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError as error:
        raise DependencyError(
            "this is a source tree that was never installed", expected=DISTRIBUTION, hint="pip install ."
        ) from error
    for line in lines:
        requirement = packaging.requirements.Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _check(requirement.name, str(requirement.specifier))


def _check(name: str, specifier: str) -> Requirement:
    try:
        installed: str | None = version(name)
    except PackageNotFoundError:
        installed = None
    fits = installed is not None and SpecifierSet(specifier).contains(installed, prereleases=True)
    return Requirement(name=name, required=specifier or "any", installed=installed, ok=fits)


def _gpus() -> Iterator[GpuRecord]:
    import torch

    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        yield GpuRecord(
            name=torch.cuda.get_device_name(index),
            compute_capability=".".join(map(str, capability)),
            memory_bytes=torch.cuda.get_device_properties(index).total_memory,
            fp8=capability >= FP8_CAPABILITY,
            sparsity_2_4=capability >= SPARSITY_CAPABILITY,
        )


def _engine_builder() -> BuilderRecord:
    found = find_builder()
    return BuilderRecord(reason=found) if isinstance(found, str) else BuilderRecord(version=found.version)


def _hub() -> HubRecord:
    from huggingface_hub import HfApi, constants, get_token

    has_token = bool(get_token())
    if constants.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE") == "1":
        return HubRecord(reachable=False, reason="offline mode is set", has_token=has_token)
    try:
        import requests

        requests.head(HfApi().endpoint, timeout=_HUB_TIMEOUT_S)
    except (OSError, ValueError) as error:
        return HubRecord(reachable=False, reason=type(error).__name__, has_token=has_token)
    return HubRecord(reachable=True, has_token=has_token)
