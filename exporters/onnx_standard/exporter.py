"""The standard ONNX exports: one class, three precisions; executed on the CPU where they are written."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from pydantic import JsonValue

from compressor.core.errors import VerificationError
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from compressor.models.families import family_of
from compressor.models.sparse.masks import check_pattern
from compressor.models.sparse.record import SparsityRecord
from compressor.models.tokenizer_files import copy_tokenizer
from compressor.recipe.recipe import Export
from exporters.onnx.builder import GRAPH_FILE
from exporters.onnx.runtime import NotExecutableError
from exporters.onnx_standard.agreement import compare_graph
from exporters.onnx_standard.content import check_content, check_layers
from exporters.onnx_standard.decoder import build_decoder
from exporters.onnx_standard.execute import WIDENED_NOTE, StandardGraph
from exporters.onnx_standard.expressible import check_expressible
from exporters.onnx_standard.graph import OPSET
from exporters.onnx_standard.stored import DATA_FILE, StoredModel
from exporters.onnx_standard.tensors import DTYPES, opened_tensors, rope_of
from exporters.protocol import Exporter
from exporters.verification.comparison import rounded
from exporters.verification.logits import VerifyOptions, student_prompts
from exporters.verification.record import Verification
from exporters.verification.tokenizer_check import check_tokenizer
from exporters.verification.tolerance import TOLERANCES

# Smaller tensors stand in the graph itself, where tools show them.
_INLINE_BYTES = 1024
_LAYER_TOKENS = 64


class OnnxStandardExporter(Exporter):
    """A graph of standard operators with a KV cache, for TensorRT and any other ONNX runtime."""

    libraries = ("torch", "transformers", "onnx", "onnx_ir", "onnxruntime")

    def check(self, config: dict[str, object], export: Export, sparsity: SparsityRecord | None) -> None:
        """Refuse a model whose graph would compute something else, from its config alone."""
        check_expressible(config)

    def write(self, source: Path, out_dir: Path, options: VerifyOptions) -> None:
        """Write the graph, its tensors beside it, and the tokenizer."""
        config = read_config(source)
        dims = dims_of_config(config)
        with opened_tensors(source, self.precision) as tensors:
            model = build_decoder(config, dims, tensors, rope_of(source), dtype=DTYPES[self.precision])
            path = out_dir / GRAPH_FILE
            ir.save(model, path, external_data=DATA_FILE, size_threshold_bytes=_INLINE_BYTES)
        copy_tokenizer(source, out_dir)

    def verify(self, out_dir: Path, student: Path, options: VerifyOptions) -> Verification:
        """Compare every node and tensor with the student's, then execute the graph.

        Its linear layers one by one, its logits at every position, prompts fed in several steps behind the
        cache, and a batch of sequences of different lengths; see `compare_graph`. The logits in 16 bits have
        the tolerance of other graphs of their precision.
        """
        config = read_config(student)
        dims, prompts = dims_of_config(config), student_prompts(student, options)
        counts = check_content(out_dir, student, precision=self.precision)
        checks: dict[str, JsonValue] = {
            "num_equal_tensors": counts.tensors,
            "num_equal_fp8_weights": counts.fp8_weights,
            "num_equal_scales": counts.scales,
            "num_equal_nodes": counts.nodes,
            "opset": OPSET,
            "tokenizer": check_tokenizer(out_dir, student, trust_remote_code=options.trust_remote_code),
        }
        try:
            layers = StandardGraph(out_dir, dims, linears=dims.linear_names())
            values = layers.layer_values(prompts[0].token_ids[:_LAYER_TOKENS])
            checks["linear_layers"] = {
                "num": len(values),
                "max_relative": rounded(check_layers(values, student, precision=self.precision)),
            }
            del layers, values
            agreement = compare_graph(out_dir, student, prompts, options, precision=self.precision)
        except NotExecutableError as error:
            raise VerificationError(
                "onnxruntime cannot execute the graph", where=self.row.name, found=error
            ) from error
        return self.verification(
            checks | agreement.checks,
            prompts=prompts,
            logits=agreement.logits,
            tolerance=TOLERANCES["fp32" if self.precision == "bf16" else self.precision],
            notes=(WIDENED_NOTE,) if self.precision == "bf16" else (),
        )

    def check_structure(self, directory: Path) -> dict[str, JsonValue]:
        """Check that the graph can be read, is whole, and has standard operators only."""
        stored = StoredModel(directory)
        for node in stored.model.graph:
            if node.domain not in ("", "ai.onnx"):
                raise VerificationError(
                    "an operator is not of the standard domain",
                    where=f"{directory / GRAPH_FILE}: {node.name}",
                    found=f"{node.domain}:{node.op_type}",
                )
        for name in stored.names():
            stored.tensor(name)
        return {"num_nodes": len(stored.model.graph), "num_tensors": len(stored.names())}

    def check_sparsity(self, directory: Path, sparsity: SparsityRecord) -> int:
        """Check every recorded tensor, which the graph stores under its own name and in its own layout."""
        stored = StoredModel(directory)
        family_of(sparsity.model_type)
        for name in sparsity.shapes:
            check_pattern(name, stored.tensor(name), sparsity.pattern)
        return len(sparsity.shapes)
