"""The export formats: what each is called, what it needs, and where its code is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from compressor.choices.row import Row, table

STUDENT_FORMAT = "huggingface"  # what every run writes as its student, and compares other formats with


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
    """

    option: str
    precisions: tuple[str, ...]
    marker: str
    default: Literal["never", "always", "with fp8", "without fp8"] = "never"
    requires: tuple[str, ...] = ()
    needs_fp8: bool = False
    has_engine: bool = False

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
)
_ONNX = Format(
    name="onnx",
    help="float32 ONNX graph for ONNX Runtime GenAI.",
    option="onnx",
    precisions=("fp32",),
    code="exporters.onnx.exporter:OnnxExporter",
    marker="genai_config.json",
    default="always",
    requires=("onnxruntime-genai", "onnxruntime", "onnx_ir"),
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
    ),
)


def default_formats(*, fp8: bool) -> tuple[str, ...]:
    """The formats of a run that names none."""
    own = ("always", "with fp8" if fp8 else "without fp8")
    return tuple(name for name, row in FORMATS.items() if row.default in own)


def options() -> dict[str, dict[str, str]]:
    """The formats by `export --format` and `--precision`."""
    found: dict[str, dict[str, str]] = {}
    for name, row in FORMATS.items():
        found.setdefault(row.option, {}).update(dict.fromkeys(row.precisions, name))
    return found
