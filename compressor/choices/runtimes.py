"""The runtimes of a benchmark: what each is called, what it reads and needs, and where its code is."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

from compressor.choices.row import Row, table
from compressor.core.errors import DependencyError, UsageError, nearest

CHECKPOINT = "huggingface"  # what a runtime reads that needs no export


@dataclass(frozen=True, kw_only=True)
class Runtime(Row):
    """A class of `bench.runtimes.base`'s protocols, made without arguments.

    Attributes:
        reads: The `export --format` whose directories it loads; a checkpoint is loaded as it is.
        precisions: What `bench --precision` may ask of it, its default first; empty where a model runs in
            the precision it is stored in.
        random_weights: Its default precision for models of random weights; None where it runs none.
        serves: Whether it keeps requests in flight (`ServingRuntime`) instead of running static batches
            (`StaticRuntime`).
        runs_engines: Whether an engine can run in a checkpoint's place.
        requires: Distributions whose versions decide its numbers.
        executable: A program that must be on PATH.
        install: What to do where that program is missing.
    """

    reads: str = CHECKPOINT
    precisions: tuple[str, ...] = ()
    random_weights: str | None = None
    serves: bool = False
    runs_engines: bool = False
    requires: tuple[str, ...] = ()
    executable: str | None = None
    install: str | None = None

    def load(self) -> Any:
        """Import its class and make one."""
        return super().load()()

    def require_executable(self) -> None:
        """Refuse a runtime whose program is missing.

        Raises:
            DependencyError: when it is not on PATH.
        """
        if self.executable is not None and shutil.which(self.executable) is None:
            raise DependencyError(
                f"{self.executable} is not on PATH", where=f"--runtime {self.name}", hint=self.install
            )


RUNTIMES = table(
    Runtime(
        name="onnxruntime-genai",
        help="ONNX graphs in ONNX Runtime GenAI; graphs are built and verified once and used again.",
        code="bench.runtimes.onnxruntime_genai:OnnxRuntimeGenai",
        reads="onnx",
        precisions=("fp32", "fp16", "int4"),
        random_weights="fp32",
        requires=("onnxruntime", "onnxruntime-genai"),
    ),
    Runtime(
        name="torch-eager",
        help="Checkpoints, or shapes with random weights, in PyTorch with a static key/value cache.",
        code="bench.runtimes.torch_eager:TorchEager",
        precisions=("fp32", "bf16", "fp16", "fp8", "bf16+2:4", "fp16+2:4"),
        random_weights="bf16",
        requires=("torch",),
    ),
    Runtime(
        name="tensorrt-llm",
        help="Checkpoints or TensorRT engines, served by trtllm-bench under concurrent requests.",
        code="bench.runtimes.tensorrt_llm:TensorrtLlm",
        serves=True,
        runs_engines=True,
        executable="trtllm-bench",
        install="run the command inside the TensorRT-LLM 1.2.1 container",
    ),
)
DEFAULT_RUNTIME = next(iter(RUNTIMES))


def runtime_named(name: str) -> Runtime:
    """The row of a runtime.

    Raises:
        UsageError: when there is none of this name.
    """
    if name not in RUNTIMES:
        raise UsageError(
            f"unknown runtime {name!r}",
            where="--runtime",
            expected=", ".join(RUNTIMES),
            hint=nearest(name, RUNTIMES) or "choose one of the expected runtimes",
        )
    return RUNTIMES[name]
