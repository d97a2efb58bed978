"""What this machine can do: versions against both dependency sets, GPU, engine builder, disk, hub."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from compressor.core.errors import DependencyError
from compressor.core.hardware import describe, free_disk_bytes
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
_BUILDER_TIMEOUT_S = 120


def examine() -> dict[str, Any]:
    """Look at everything once; nothing is changed."""
    return {
        "schema": "compress-export/doctor/1",
        "machine": describe(),
        "free_disk_bytes": free_disk_bytes(Path.cwd()),
        "dependencies": _declared(),
        "tensorrt_llm_container_set": [_check(name, spec) for name, spec in CONTAINER_SET.items()],
        "gpus": _gpus(),
        "trtllm_build": _engine_builder(),
        "hub": _hub(),
    }


def _declared() -> list[dict[str, Any]]:
    """The installed distribution's own requirements, extras left out."""
    found = []
    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError as error:
        raise DependencyError(
            "this is a source tree that was never installed", expected=DISTRIBUTION, hint="pip install ."
        ) from error
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found.append(_check(requirement.name, str(requirement.specifier)))
    return found


def _check(name: str, specifier: str) -> dict[str, Any]:
    try:
        installed: str | None = version(name)
    except PackageNotFoundError:
        installed = None
    fits = installed is not None and SpecifierSet(specifier).contains(installed, prereleases=True)
    return {"name": name, "required": specifier or "any", "installed": installed, "ok": fits}


def _gpus() -> list[dict[str, Any]]:
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        gpus.append(
            {
                "name": torch.cuda.get_device_name(index),
                "compute_capability": ".".join(map(str, capability)),
                "memory_bytes": torch.cuda.get_device_properties(index).total_memory,
                "fp8": capability >= FP8_CAPABILITY,
                "sparsity_2_4": capability >= SPARSITY_CAPABILITY,
            }
        )
    return gpus


def _engine_builder() -> dict[str, Any]:
    found = find_builder()
    if isinstance(found, str):
        return {"found": False, "reason": found}
    return {"found": True, "version": found.version}


def _hub() -> dict[str, Any]:
    from huggingface_hub import HfApi, constants, get_token

    token = "set" if get_token() else "not set"
    if constants.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE") == "1":
        return {"reachable": False, "reason": "offline mode is set", "token": token}
    try:
        import requests

        requests.head(HfApi().endpoint, timeout=_HUB_TIMEOUT_S)
    except (OSError, ValueError) as error:
        return {"reachable": False, "reason": type(error).__name__, "token": token}
    return {"reachable": True, "token": token}
