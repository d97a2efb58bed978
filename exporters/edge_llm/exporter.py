"""The TensorRT-Edge-LLM exports: NVIDIA's converter makes the graph, which is compared number by number."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from compressor.core.errors import UsageError
from compressor.models.checkpoint import CheckpointReader
from compressor.models.sparse.masks import check_pattern
from compressor.models.sparse.record import SparsityRecord
from compressor.models.tokenizer_files import copy_tokenizer
from compressor.quantization.amax import FP8_DIRECTORY
from compressor.quantization.coverage import K_SCALE
from compressor.recipe.recipe import Export
from compressor.runs.artifact import ModelArtifact
from exporters.checks.equality import expect_equal, expect_same_file
from exporters.edge_llm.compare import compare, require_castable
from exporters.edge_llm.engine import make_engine
from exporters.edge_llm.expressible import check_expressible
from exporters.edge_llm.package import convert, require_chat_template, require_converter
from exporters.edge_llm.reader import GRAPH_DIRECTORY, EdgeReader
from exporters.edge_llm.runtime_config import VERSION_FIELD, check_runtime_config
from exporters.protocol import Exporter
from exporters.verification.logits import VerifyOptions
from exporters.verification.record import Engine, Verification
from exporters.verification.tokenizer_check import check_tokenizer

_NOTE = (
    "every stored number was compared, and every operator of the graph; TensorRT-Edge-LLM's runtime, which "
    "computes the attention, was not run"
)
# What the runtime reads of the tokenizer, beside the graph.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja")


class EdgeLLMExporter(Exporter):
    """An ONNX graph with TensorRT-Edge-LLM's attention operator, under `llm/`."""

    libraries = ("torch", "transformers", "onnx")

    def loads_student(self, student: Path) -> bool:
        """Tensors are compared one at a time."""
        return False

    def settings(self, export: Export) -> Export:
        """Where the converter is, and what the engine is built for."""
        return Export(edge_llm=export.edge_llm)

    def require(self, export: Export) -> None:
        """Refuse, as a DependencyError, to begin without the converter."""
        require_converter(export.edge_llm.python)

    def check(self, config: dict[str, object], export: Export, sparsity: SparsityRecord | None) -> None:
        """Refuse what the runtime would compute otherwise, from the config alone."""
        check_expressible(config)

    def check_files(self, directory: Path) -> None:
        """Refuse a checkpoint without a chat template."""
        require_chat_template(directory)

    def write(self, source: Path, out_dir: Path, options: VerifyOptions) -> None:
        """Convert the 16-bit checkpoint, or the unified FP8 one of the quantize stage's artifact."""
        converter = require_converter(options.export.edge_llm.python)
        checkpoint = source / FP8_DIRECTORY if self._is_fp8 else source
        if not checkpoint.is_dir():
            raise UsageError(
                "this checkpoint was not quantised",
                where=str(source),
                expected=f"{FP8_DIRECTORY}/",
                hint="run `compress-export quantize MODEL --fp8 -o DIR` and export DIR",
            )
        self.check_files(source)
        require_castable(source, fp8=self._is_fp8)
        convert(checkpoint, source, out_dir, converter, options.console)
        copy_tokenizer(source, out_dir)

    def verify(self, out_dir: Path, student: Path, options: VerifyOptions) -> Verification:
        """Compare the graph's operators, every stored number, the runtime's config and the tokenizer."""
        reader = EdgeReader(out_dir)
        where = f"{self.row.name}: fp8"
        expect_equal("the export has another precision", self._is_fp8, reader.is_fp8, where=where)
        if self._is_fp8 and (student / FP8_DIRECTORY).is_dir():
            expected = _has_fp8_kv_cache(student)
            what = "the export's KV cache has another precision than asked for"
            expect_equal(what, expected, reader.has_fp8_kv_cache, where=f"{self.row.name}: kv_cache_dtype")
        if reader.is_fp8:
            reader.check_scales()
        found = compare(reader, student)
        config = check_runtime_config(
            out_dir / GRAPH_DIRECTORY, student, fp8_kv_cache=reader.has_fp8_kv_cache
        )
        tokenizer = check_tokenizer(out_dir, student, trust_remote_code=options.trust_remote_code)
        for name in _TOKENIZER_FILES:
            expect_same_file(name, out_dir, out_dir / GRAPH_DIRECTORY)
        checks: dict[str, JsonValue] = {
            "num_operators": len(reader.graph.graph.node),
            "num_equal_tensors": found.num_tensors,
            "num_equal_fp8_weights": found.num_fp8_weights,
            "num_equal_scales": found.num_scales,
            "num_equal_bytes": found.num_bytes,
            "num_tensors_changed_by_float16": found.num_changed_by_float16,
            "config": config,
            "tokenizer": tokenizer,
            "tensorrt_edgellm": str(reader.config[VERSION_FIELD]),
        }
        return self.verification(checks, notes=(_NOTE,))

    def check_structure(self, directory: Path) -> dict[str, JsonValue]:
        """Check the graph's operators, and types, shapes and finite values of every tensor."""
        reader = EdgeReader(directory)
        return {"num_tensors": reader.check_tensors(), "fp8": reader.is_fp8}

    def check_sparsity(self, directory: Path, sparsity: SparsityRecord) -> int:
        """Check every recorded tensor as the graph stores it, groups along its inputs."""
        reader = EdgeReader(directory)
        for name in sparsity.shapes:
            check_pattern(name, reader.stored(name), sparsity.pattern)
        return len(sparsity.shapes)

    def make_engine(self, out_dir: Path, source: ModelArtifact, options: VerifyOptions) -> Engine:
        """Build the device's engine, or leave the script that builds it."""
        return make_engine(out_dir, options.export.edge_llm, options.console)

    @property
    def _is_fp8(self) -> bool:
        return self.precision == "fp8"


def _has_fp8_kv_cache(source: Path) -> bool:
    """Whether the quantize stage was asked for it: then its unified checkpoint holds the scales."""
    with CheckpointReader(source / FP8_DIRECTORY) as reader:
        return any(name.endswith(K_SCALE) for name in reader)
