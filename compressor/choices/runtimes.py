"""The runtimes of a benchmark: what each is called, reads and needs, how it is found, where its code is.

Static batches and served requests are in one table, in the order in which `--runtime auto` looks for one.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from compressor.choices.row import Row, table
from compressor.core.errors import DependencyError, UsageError, nearest

CHECKPOINT = "huggingface"  # what a runtime reads that needs no export
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Runtime(Row):
    """A class of `bench.runtimes.base`'s protocols, made without arguments.

    Attributes:
        reads: The `export --format` whose directories it loads; a checkpoint is loaded as it is.
        devices: What executes a model in it; `auto` takes it where there is the first of them, or where its
            `executable` is.
        precisions: What `bench --precision` may ask of it, its default first; empty where a model runs in
            the precision it is stored in.
        random_weights: Its default precision for models of random weights; None where it runs none.
        serves: Whether it keeps requests in flight (`ServingRuntime`) instead of running static batches
            (`StaticRuntime`).
        engines: The `export --format` whose engines can run in a checkpoint's place; None where none can.
            What it `reads` too, it runs nothing else.
        requires: Distributions whose versions decide its numbers.
        modules: Python modules that it is found by.
        executable: A program that it is found by, on PATH.
        builder: The program that builds engines: where it is on PATH as well, a run measures engines.
        install: What to do where it is not found.
        is_automatic: Whether `auto` takes it; one whose exports need more than this package is named.
    """

    reads: str = CHECKPOINT
    devices: tuple[Device, ...] = ("cuda", "cpu")
    precisions: tuple[str, ...] = ()
    random_weights: str | None = None
    serves: bool = False
    engines: str | None = None
    requires: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    executable: str | None = None
    builder: str | None = None
    install: str | None = None
    is_automatic: bool = True

    def load(self) -> Any:
        """Import its class and make one."""
        return super().load()()

    def missing(self) -> str | None:
        """What this machine lacks of it, in words; None where it is found. Nothing is imported."""
        if self.executable is not None and shutil.which(self.executable) is None:
            return f"{self.executable} is not on PATH"
        absent = [name for name in self.modules if importlib.util.find_spec(name) is None]
        return f"{absent[0]} is not installed" if absent else None

    def builds_here(self) -> bool:
        """Whether this machine has the program that builds its engines."""
        return self.builder is not None and shutil.which(self.builder) is not None

    def require_found(self) -> None:
        """Refuse a runtime that is not on this machine.

        Raises:
            DependencyError: naming the program or module that is missing.
        """
        if missing := self.missing():
            raise DependencyError(missing, where=f"--runtime {self.name}", hint=self.install)


RUNTIMES = table(
    Runtime(
        name="tensorrt-llm",
        help="TensorRT engines, or checkpoints, served by trtllm-bench under concurrent requests.",
        code="bench.runtimes.tensorrt_llm:TensorrtLlm",
        devices=("cuda",),
        serves=True,
        engines="tensorrt-llm",
        executable="trtllm-bench",
        builder="trtllm-build",
        install="run the command inside the TensorRT-LLM 1.2.1 container, or where a later TensorRT-LLM is",
    ),
    Runtime(
        name="vllm",
        help="Checkpoints, served by vLLM and measured by its own benchmark under concurrent requests.",
        code="bench.runtimes.vllm:Vllm",
        serves=True,
        executable="vllm",
        install="run the command where vLLM is installed: vllm must be on PATH",
    ),
    Runtime(
        name="tensorrt-edge-llm",
        help="TensorRT-Edge-LLM's engines on a device, measured by its llm_bench in batches.",
        code="bench.runtimes.edge_llm:EdgeLlm",
        reads="tensorrt-edge-llm",
        devices=("cuda",),
        serves=True,
        engines="tensorrt-edge-llm",
        executable="llm_bench",
        builder="llm_build",
        install="build TensorRT-Edge-LLM's C++ programs on the device and put llm_bench on PATH",
        is_automatic=False,
    ),
    Runtime(
        name="torch",
        help="Checkpoints, or shapes with random weights, in PyTorch with a static key/value cache.",
        code="bench.runtimes.torch_eager:TorchEager",
        precisions=("fp32", "bf16", "fp16", "fp8", "bf16+2:4", "fp16+2:4"),
        random_weights="bf16",
        requires=("torch",),
        modules=("torch",),
        install="pip install torch",
    ),
    Runtime(
        name="onnxruntime",
        help="ONNX graphs in ONNX Runtime GenAI; graphs are built and verified once and used again.",
        code="bench.runtimes.onnxruntime_genai:OnnxRuntimeGenai",
        reads="onnx",
        devices=("cpu",),
        precisions=("fp32", "fp16", "int4"),
        random_weights="fp32",
        requires=("onnxruntime", "onnxruntime-genai"),
        modules=("onnxruntime_genai",),
        install="pip install onnxruntime-genai",
    ),
)
AUTO, NONE = "auto", "none"
# What needs nothing that the package does not install, and no GPU.
ON_EVERY_MACHINE = "onnxruntime"
_NO_CODE = "no code: nothing is measured"
# What a recipe may name; the table in between may grow.
RUNTIME_CHOICES: Mapping[str, Row] = ChainMap(
    {NONE: Row(name=NONE, help="Measures nothing: a run ends with its evaluation.", code=_NO_CODE)},
    RUNTIMES,  # type: ignore[arg-type] # only read
    {
        AUTO: Row(
            name=AUTO,
            help="Takes the first of the following that this machine has: TensorRT engines where "
            "trtllm-build and trtllm-bench are, another server, torch on a GPU, onnxruntime.",
            code=_NO_CODE,
        )
    },
)


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


def runtime_on_this_machine(*, has_gpu: bool) -> tuple[Runtime, str]:
    """What `auto` is here, and why: the first row that is found and fits the machine's devices.

    A program on PATH is taken as it is found: it knows its own devices.

    Raises:
        DependencyError: when there is none at all.
    """
    devices = ("cuda", "cpu") if has_gpu else ("cpu",)
    passed: list[str] = []
    for row in RUNTIMES.values():
        if not row.is_automatic:
            continue
        missing = row.missing()
        if missing is None and (row.executable is not None or row.devices[0] in devices):
            return row, _why(row, passed, has_gpu=has_gpu)
        if missing is not None:
            passed.append(missing)
    raise DependencyError(
        "there is no runtime to measure with",
        where="--runtime auto",
        found="; ".join(passed),
        hint=f"{RUNTIMES[ON_EVERY_MACHINE].install}, or use --runtime none",
    )


def _why(row: Runtime, passed: list[str], *, has_gpu: bool) -> str:
    """Why this row was taken, and what was not there before it."""
    if row.executable is not None:
        engines = ""
        if row.builder is not None:
            has = "and so is" if row.builds_here() else "without"
            engines = f" {has} {row.builder}"
        found = f"{row.executable} is on PATH{engines}"
    else:
        found = "there is a GPU" if has_gpu and "cuda" in row.devices else "there is no GPU"
    return ", ".join([found, *passed])
