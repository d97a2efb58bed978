"""Which TensorRT-LLM is here, and whether it builds engines.

1.2 is the last stable line with the engine backend; from 1.3 on `trtllm-build` is gone, and TensorRT-LLM
runs Hugging Face checkpoints directly.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from packaging.version import InvalidVersion, Version

from compressor.choices.formats import FORMATS
from compressor.core.errors import DependencyError, UsageError

BUILDER = "trtllm-build"
CONTAINER = "nvcr.io/nvidia/tensorrt-llm/release:1.2.1"
FIRST_WITHOUT_ENGINES = Version("1.3.0.dev0")
OLDEST = Version("1.0")
NO_ENGINES = (
    "TensorRT-LLM from 1.3 on has no engine builder: it runs the huggingface-fp8 export directly "
    "(trtllm-serve DIR), as do vLLM and SGLang"
)
_STATED = re.compile(r"TensorRT-LLM version:\s*(\S+)")
_TIMEOUT_S = 300


@dataclass(frozen=True, kw_only=True)
class Builder:
    """An engine builder that can be used: its path and TensorRT-LLM's version."""

    path: str
    version: str


def find_builder() -> Builder | str:
    """The engine builder on PATH, or why there is none."""
    path = shutil.which(BUILDER)
    if path is None:
        installed = _installed()
        if installed is not None and installed >= FIRST_WITHOUT_ENGINES:
            return f"TensorRT-LLM {installed} is installed; {NO_ENGINES}"
        return f"no {BUILDER} on PATH"
    stated = _stated_version(path)
    if stated is None:
        return f"{path} does not say which TensorRT-LLM it belongs to"
    if stated >= FIRST_WITHOUT_ENGINES:
        return f"{path} belongs to TensorRT-LLM {stated}; {NO_ENGINES}"
    if stated < OLDEST:
        return f"{path} belongs to TensorRT-LLM {stated}; its flags are others, 1.2.1 is known to fit"
    return Builder(path=path, version=str(stated))


def require_engine_format(formats: Sequence[str]) -> None:
    """Refuse (UsageError) to require an engine where no format is written that one is built from."""
    if not any(FORMATS[name].has_engine for name in formats):
        able = [name for name, row in FORMATS.items() if row.has_engine]
        raise UsageError(
            "an engine is required, but no engine is built from the formats that are written",
            where="--require-engine",
            expected=" or ".join(able),
            found=", ".join(formats),
            hint=f"add {able[0]} to the formats, or leave --require-engine out",
        )


def require_builder() -> Builder:
    """The engine builder; a DependencyError, with the container that has one, when there is none."""
    found = find_builder()
    if isinstance(found, str):
        raise DependencyError(
            "an engine is required and cannot be built here",
            where="--require-engine",
            expected=f"{BUILDER} of TensorRT-LLM 1.2",
            found=found,
            hint=f"run in the container {CONTAINER}, or leave --require-engine out",
        )
    return found


def _stated_version(path: str) -> Version | None:
    """TensorRT-LLM says its version whenever it is imported; the builder's help imports it."""
    try:
        answer = subprocess.run(  # noqa: S603 - an executable found on PATH, fixed arguments
            [path, "--help"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _STATED.search(answer.stdout)
    return _parsed(found[1]) if found else None


def _installed() -> Version | None:
    try:
        return _parsed(version("tensorrt_llm"))
    except PackageNotFoundError:
        return None


def _parsed(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None
