"""The door for formats: a small protocol, a literal table, and the stage that writes and verifies one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from compressor.core.errors import AccuracyGateError
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from compressor.models.memory import require_model_memory
from compressor.models.sparse.low_rank import refuse_adapter
from compressor.models.sparse.pattern import TWO_OF_FOUR
from compressor.models.sparse.record import Promise, carry_promise, read_promise
from compressor.recipe.recipe import Export, ExportFormat, TensorRTLLM
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import Stage, StageContext, StageResult, start_afresh
from exporters.huggingface import HuggingFaceExporter, HuggingFaceFp8Exporter
from exporters.onnx.builder import require_onnx_builder
from exporters.onnx.exporter import OnnxExporter
from exporters.tensorrt_llm.engine import make_engine
from exporters.tensorrt_llm.exporter import TensorRTLLMExporter
from exporters.verification.logits import VerifyOptions
from exporters.verification.record import Verification, write_verification
from exporters.verification.sparsity import check_sparsity


class Exporter(Protocol):
    """Writes one format and compares what it wrote with the student."""

    @property
    def precision(self) -> str:
        """Precision of the weights; names a row of the tolerances."""

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose versions decide the files or the figures."""

    def check(self, config: dict[str, Any], settings: Export, promise: Promise | None) -> None:
        """Refuse a model that the format cannot express, before anything is loaded or written.

        Args:
            config: The model's Hugging Face config.
            settings: The recipe's settings of exports.
            promise: The sparsity that the model has, or will have.

        Raises:
            UnsupportedError: naming the field, and what to do.
        """

    def write(self, source: Path, out_dir: Path, options: VerifyOptions) -> None:
        """Fill `out_dir` from the source artifact's directory."""

    def verify(self, out_dir: Path, student: Path, options: VerifyOptions) -> Verification:
        """Reopen what was written and compare it with the 16-bit checkpoint in `student`.

        Raises:
            VerificationError: for what must be exact and is not; measured figures beyond their
                tolerance are the caller's to enforce.
        """


EXPORTERS: dict[ExportFormat, Exporter] = {
    "huggingface": HuggingFaceExporter(),
    "huggingface-fp8": HuggingFaceFp8Exporter(),
    "onnx": OnnxExporter("fp32"),
    "onnx-fp16": OnnxExporter("fp16"),
    "onnx-int4": OnnxExporter("int4"),
    "tensorrt-llm": TensorRTLLMExporter("bf16"),
    "tensorrt-llm-fp16": TensorRTLLMExporter("fp16"),
    "tensorrt-llm-fp8": TensorRTLLMExporter("fp8"),
}


def check_exports(
    formats: Iterable[ExportFormat],
    config: dict[str, Any],
    settings: Export,
    *,
    promise: Promise | None = None,
) -> None:
    """Refuse, from its config alone, a model that one of these formats cannot express.

    Raises:
        UnsupportedError: naming the format's reason.
    """
    for name in formats:
        EXPORTERS[name].check(config, settings, promise)


def needs_quantised(format_name: ExportFormat) -> bool:
    """Whether a format starts from the quantize stage's artifact instead of the 16-bit student."""
    return EXPORTERS[format_name].precision == "fp8"


def require_libraries(formats: Iterable[ExportFormat]) -> None:
    """Refuse formats that nothing on this machine can write.

    Raises:
        DependencyError: naming the library that is missing.
    """
    if any(isinstance(EXPORTERS[name], OnnxExporter) for name in formats):
        require_onnx_builder()


def settings_of(format_name: ExportFormat, settings: Export) -> Export:
    """The settings that decide this format, so that others' do not change its fingerprint."""
    kept: dict[str, object] = {"formats": None}
    if not isinstance(EXPORTERS[format_name], TensorRTLLMExporter):
        kept["tensorrt_llm"] = TensorRTLLM()
    return settings.model_copy(update=kept)


def export_stage(format_name: ExportFormat) -> Stage[Export]:
    """The stage `export-<format>`: writes the format, verifies it, and leaves `verification.json`.

    Its source is the 16-bit student; for FP8 the quantize stage's artifact. Engines are built last, of
    checkpoints that passed.
    """
    exporter = EXPORTERS[format_name]

    def run(config: Export, source: ModelArtifact, out_dir: Path, context: StageContext) -> StageResult:
        exporter.check(read_config(source.path), config, read_promise(source.path))
        start_afresh(out_dir)
        options = VerifyOptions(
            console=context.console,
            device=context.device,
            trust_remote_code=context.trust_remote_code,
            export=config,
        )
        if format_name != "huggingface":
            refuse_adapter(source.path, by=f"the {format_name} export")
        exporter.write(source.path, out_dir, options)
        carry_promise(source.path, out_dir)
        verification = exporter.verify(out_dir, source.path, options)
        verification = replace(verification, checks=verification.checks | check_sparsity(out_dir))
        write_verification(out_dir, verification)
        verification.enforce()
        if exporter.precision == "int4":
            _enforce_gate(verification, config.int4_min_top1, format_name)
        details = verification.to_dict()
        if isinstance(exporter, TensorRTLLMExporter):
            details["engine"] = make_engine(
                out_dir,
                dims_of_config(read_config(source.path)),
                config.tensorrt_llm,
                context.console,
                sparsity=_has_sparse_tactics(out_dir),
            )
        return StageResult(num_parameters=source.num_parameters, details=details)

    def require_memory(_config: Export, source: ModelArtifact, context: StageContext) -> None:
        # A machine that cannot execute an fp16 graph compares its weights alone, one at a time.
        if format_name != "onnx-fp16":
            require_model_memory((source.path, "float32"), device=context.device)

    return Stage(
        name=f"export-{format_name}",
        run=run,
        libraries=exporter.libraries,
        require_memory=require_memory,
    )


def _has_sparse_tactics(out_dir: Path) -> bool:
    """Whether the promised pattern is the one that TensorRT has sparse tactics for."""
    promise = read_promise(out_dir)
    return promise is not None and promise.pattern == TWO_OF_FOUR


def _enforce_gate(verification: Verification, min_top1: float | None, format_name: str) -> None:
    agreement = verification.logits["all"].top1_agreement
    if min_top1 is not None and agreement < min_top1:
        raise AccuracyGateError(
            "int4 agrees with the student on too few most likely tokens",
            where=format_name,
            expected=f"at least {min_top1:.1%} of positions",
            found=f"{agreement:.2%}",
            hint="leave the format out, or lower export.int4_min_top1",
        )
