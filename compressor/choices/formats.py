"""The export formats: what each is called, what it needs, and where its code is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from compressor.choices.row import Row, table

STUDENT_FORMAT = "huggingface"  # what every run writes as its student, and compares other formats with


@dataclass(frozen=True, kw_only=True)
class Executor:
    """What computes an export on a CPU, for `evaluate`.

    Attributes:
        runtime: The distribution that does.
        code: As "module:attribute", a function from a directory and a precision to a
            `compressor.evaluation.executed.ExecutedGraph`.
        ends_with_context: Whether it reads no sequence beyond the model's context length.
    """

    runtime: str
    code: str
    ends_with_context: bool = False


@dataclass(frozen=True, kw_only=True)
class Format(Row):
    """A subclass of `exporters.protocol.Exporter`, made of its row.

    Attributes:
        option: What `export --format` calls it; formats of one option differ in `precisions`.
        precisions: What `export --precision` calls it. The first is the one that its size is planned with,
            and of an option's first format the default.
        marker: The file, relative to a directory, that shows that the directory has this format.
        default: Which runs write it where the recipe names no formats.
        requires: Distributions without which it cannot be written; a module has the same name with
            underscores.
        needs_fp8: Whether it is made from the quantize stage's artifact instead of the 16-bit student.
        has_engine: Whether an engine is built from it where `trtllm-build` is installed.
        engine_files: What the script that an export without a builder leaves makes later, as patterns.
        executor: What computes it on a CPU; None where nothing here does, or where transformers reads it.
    """

    option: str
    precisions: tuple[str, ...]
    marker: str
    default: Literal["never", "always", "with fp8", "without fp8", "without gpu"] = "never"
    requires: tuple[str, ...] = ()
    needs_fp8: bool = False
    has_engine: bool = False
    engine_files: tuple[str, ...] = ()
    executor: Executor | None = None

    @property
    def has_dense_twin(self) -> bool:
        """Whether a 2:4 model's engine has a dense one beside it, to compare with."""
        return any(pattern.startswith("engine-dense/") for pattern in self.engine_files)

    def load(self) -> Any:
        """Its exporter, imported now."""
        return super().load()(self)


_HUGGINGFACE = Format(
    name=STUDENT_FORMAT,
    help="16-bit Hugging Face checkpoint.",
    option="huggingface",
    precisions=("bf16", "fp16"),
    code="exporters.huggingface:HuggingFaceExporter",
    marker="config.json",
    default="always",
)
_TENSORRT_LLM = Format(
    name="tensorrt-llm",
    help="bfloat16 TensorRT-LLM checkpoint, and its engine where trtllm-build is installed.",
    option="tensorrt-llm",
    precisions=("bf16",),
    code="exporters.tensorrt_llm.exporter:TensorRTLLMExporter",
    marker="checkpoint/config.json",
    default="without fp8",
    has_engine=True,
    engine_files=("engine/*", "engine-dense/*", "timing.cache"),
)
_EDGE_LLM = Format(
    name="tensorrt-edge-llm",
    help="float16 ONNX graph for TensorRT-Edge-LLM, and its engine where llm_build is installed.",
    option="tensorrt-edge-llm",
    precisions=("fp16",),
    code="exporters.edge_llm.exporter:EdgeLLMExporter",
    marker="llm/model.onnx",
    requires=("onnx",),
    engine_files=("engine/*",),
)
_ONNX = Format(
    name="onnx",
    help="float32 ONNX graph for ONNX Runtime GenAI.",
    option="onnx",
    precisions=("fp32",),
    code="exporters.onnx.exporter:OnnxExporter",
    marker="genai_config.json",
    default="without gpu",
    requires=("onnxruntime-genai", "onnxruntime", "onnx_ir"),
    executor=Executor(
        runtime="onnxruntime", code="exporters.onnx.executed:open_genai_graph", ends_with_context=True
    ),
)
_ONNX_STANDARD = Format(
    name="onnx-standard",
    help="float16 ONNX graph of standard operators for TensorRT and any ONNX runtime.",
    option="onnx-standard",
    precisions=("fp16",),
    code="exporters.onnx_standard.exporter:OnnxStandardExporter",
    marker="model.onnx",  # after the GenAI formats, which have one as well
    requires=("onnxruntime", "onnx_ir"),
    executor=Executor(runtime="onnxruntime", code="exporters.onnx_standard.executed:open_standard_graph"),
)
FORMATS = table(
    _HUGGINGFACE,
    replace(
        _HUGGINGFACE,
        name="huggingface-fp8",
        help="FP8 Hugging Face checkpoint for vLLM, SGLang and TensorRT-LLM.",
        precisions=("fp8",),
        code="exporters.huggingface:HuggingFaceFp8Exporter",
        default="with fp8",
        needs_fp8=True,
    ),
    _TENSORRT_LLM,
    replace(
        _TENSORRT_LLM,
        name="tensorrt-llm-fp16",
        help="float16 TensorRT-LLM checkpoint, and its engine where trtllm-build is installed.",
        precisions=("fp16",),
        default="never",
    ),
    replace(
        _TENSORRT_LLM,
        name="tensorrt-llm-fp8",
        help="FP8 TensorRT-LLM checkpoint, and its engine where trtllm-build is installed.",
        precisions=("fp8",),
        default="with fp8",
        needs_fp8=True,
    ),
    _ONNX,
    replace(
        _ONNX,
        name="onnx-fp16",
        help="float16 ONNX graph for ONNX Runtime GenAI.",
        precisions=("fp16",),
        default="never",
    ),
    replace(
        _ONNX,
        name="onnx-int4",
        help="4-bit ONNX graph for ONNX Runtime GenAI.",
        precisions=("int4",),
        default="always",
    ),
    _EDGE_LLM,
    replace(
        _EDGE_LLM,
        name="tensorrt-edge-llm-fp8",
        help="FP8 ONNX graph for TensorRT-Edge-LLM, and its engine where llm_build is installed.",
        precisions=("fp8",),
        needs_fp8=True,
    ),
    _ONNX_STANDARD,
    replace(
        _ONNX_STANDARD,
        name="onnx-standard-bf16",
        help="bfloat16 ONNX graph of standard operators for TensorRT.",
        precisions=("bf16",),
    ),
    replace(
        _ONNX_STANDARD,
        name="onnx-standard-fp8",
        help="FP8 ONNX graph of standard operators (Q/DQ) for TensorRT and any ONNX runtime.",
        precisions=("fp8",),
        needs_fp8=True,
    ),
)


def default_formats(*, fp8: bool, on_gpu: bool = False, engines: str | None = None) -> tuple[str, ...]:
    """The formats of a run that names none.

    `on_gpu` says that its benchmark measures a GPU; `engines` are those of an `export --format` that it
    measures, then in 16 bits too.
    """
    own = ["always", "with fp8" if fp8 else "without fp8", *([] if on_gpu else ["without gpu"])]
    of_engines = [row for row in FORMATS.values() if row.option == engines]
    measured = [*of_engines[:1], *(row for row in of_engines if fp8 and row.needs_fp8)]
    return tuple(name for name, row in FORMATS.items() if row.default in own or row in measured)


def options() -> dict[str, dict[str, str]]:
    """The formats by `export --format` and `--precision`."""
    found: dict[str, dict[str, str]] = {}
    for name, row in FORMATS.items():
        found.setdefault(row.option, {}).update(dict.fromkeys(row.precisions, name))
    return found
