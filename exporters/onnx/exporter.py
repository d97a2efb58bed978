"""The ONNX exports: one class, three precisions."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import JsonValue

from compressor.core.errors import AccuracyGateError, VerificationError
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from compressor.models.sparse.record import SparsityRecord
from compressor.models.tokenizer_files import copy_tokenizer
from compressor.recipe.recipe import Export
from exporters.onnx.attributes import check_attributes
from exporters.onnx.builder import build_onnx, load_graph
from exporters.onnx.expressible import check_expressible
from exporters.onnx.genai_config import check_genai_config, complete_genai_config
from exporters.onnx.int4_logits import check_against_carrying_student_
from exporters.onnx.rope import buildable, check_tables, write_tables
from exporters.onnx.runtime import GraphFailureError, NotExecutableError, OnnxModel
from exporters.onnx.sparsity import check_graph_sparsity
from exporters.onnx.weights import compare_weights
from exporters.protocol import Exporter
from exporters.verification.comparison import compare_logits, rounded
from exporters.verification.logits import (
    VerifyOptions,
    compare_models,
    student_model,
    student_prompts,
    torch_logits,
)
from exporters.verification.prompts import Prompt
from exporters.verification.record import Verification
from exporters.verification.tokenizer_check import check_tokenizer
from exporters.verification.tolerance import TOLERANCES

_CACHE_CHECK_TOKENS = 48
# What the graph's weights are stored in; int4 graphs have steps, and a check of their own.
_STORED: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}


class OnnxExporter(Exporter):
    """A graph with a KV cache for ONNX Runtime GenAI."""

    libraries = ("torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "onnxruntime-genai")

    def loads_student(self, student: Path) -> bool:
        """A machine that cannot execute an fp16 graph compares its weights alone, one at a time."""
        return self.precision != "fp16"

    def settings(self, export: Export) -> Export:
        """The gate on int4's accuracy."""
        return Export(int4_min_top1=export.int4_min_top1 if self.precision == "int4" else None)

    def check(self, config: dict[str, object], export: Export, sparsity: SparsityRecord | None) -> None:
        """Refuse a model whose graph would compute something else, from its config alone."""
        check_expressible(config)

    def write(self, source: Path, out_dir: Path, options: VerifyOptions) -> None:
        """Build the graph from the 16-bit checkpoint."""
        config = read_config(source)
        self.check(config, options.export, None)
        options.console.info(f"building the {self.precision} ONNX graph")
        with buildable(source, config) as checkpoint:
            build_onnx(
                checkpoint, out_dir, precision=self.precision, trust_remote_code=options.trust_remote_code
            )
        # The builder saves a tokenizer as transformers loaded it; the student's own files are what counts.
        copy_tokenizer(source, out_dir)
        write_tables(out_dir, source)
        complete_genai_config(out_dir, source)

    def verify(self, out_dir: Path, student: Path, options: VerifyOptions) -> Verification:
        """Compare the graph's logits at every position with the student's, its weights and its attributes.

        fp32 and fp16 weights are compared tensor by tensor; a CPU without fp16 kernels leaves it at that.
        int4 weights are compared step by step, and the graph, with float32 inputs of its quantised layers,
        with the student carrying them.
        """
        dims = dims_of_config(read_config(student))
        checks: dict[str, JsonValue] = {
            "genai_config": check_genai_config(out_dir, student, trust_remote_code=options.trust_remote_code),
            "num_rope_positions": check_tables(out_dir, student),
            "num_node_attributes": check_attributes(out_dir, student, dims),
            "tokenizer": check_tokenizer(out_dir, student, trust_remote_code=options.trust_remote_code),
        }
        if stored := _STORED.get(self.precision):
            checks["num_equal_initialisers"] = compare_weights(out_dir, student, dims, dtype=stored)
        prompts = student_prompts(student, options)
        try:
            graph = OnnxModel(out_dir, dims)
            checks["kv_cache_max_relative"] = self._check_cache(graph, prompts[0])
            model = student_model(student, options)
            logits = compare_models(torch_logits(model), graph.logits, prompts, options.console)
            if self.precision == "int4":
                checks |= check_against_carrying_student_(
                    model, out_dir, student, prompts, options, compared=logits["all"]
                )
        except (NotExecutableError, GraphFailureError) as error:
            if self.precision != "fp16":
                raise VerificationError(
                    "onnxruntime cannot execute the graph", where=self.row.name, found=error
                ) from error
            # The CPU runtime executes some fp16 graphs and fails in others of the same builder.
            note = "this CPU runtime does not execute the graph; its weights were compared tensor by tensor"
            return self.verification(checks, notes=(note,))
        return self.verification(checks, prompts=prompts, logits=logits, tolerance=TOLERANCES[self.precision])

    def enforce(self, verification: Verification, export: Export) -> None:
        """Beyond the tolerance, hold int4 to the recipe's gate on its most likely tokens."""
        verification.enforce()
        if self.precision != "int4" or export.int4_min_top1 is None:
            return
        agreement = verification.logits["all"].top1_agreement
        if agreement < export.int4_min_top1:
            raise AccuracyGateError(
                "int4 agrees with the student on too few most likely tokens",
                where=self.row.name,
                expected=f"at least {export.int4_min_top1:.1%} of positions",
                found=f"{agreement:.2%}",
                hint="leave the format out, or lower export.int4_min_top1",
            )

    def check_structure(self, directory: Path) -> dict[str, JsonValue]:
        """Check that the graph can be read, and that its weights lie beside it."""
        data = [pair for entry in load_graph(directory).graph.initializer for pair in entry.external_data]
        for name in sorted({pair.value for pair in data if pair.key == "location"}):
            if Path(name).name != name or not (directory / name).is_file():
                raise VerificationError("the graph's weights are missing", where=str(directory / name))
        return {}

    def check_sparsity(self, directory: Path, sparsity: SparsityRecord) -> int:
        """Check every recorded tensor as the graph stores it."""
        return check_graph_sparsity(directory, sparsity)

    def _check_cache(self, graph: OnnxModel, prompt: Prompt) -> float:
        """Logits computed from the KV cache against those computed at once."""
        token_ids = prompt.token_ids[:_CACHE_CHECK_TOKENS]
        at_once = graph.logits(token_ids)
        compared = compare_logits(at_once, graph.logits_in_two_steps(token_ids, first=len(token_ids) // 2))
        tolerance = TOLERANCES[self.precision]
        if tolerance is not None and compared.max_relative > tolerance.max_relative:
            raise VerificationError(
                "the graph computes something else from its KV cache",
                where=self.row.name,
                expected=f"at most {tolerance.max_relative:g} of the largest logit",
                found=f"{compared.max_relative:.3g}",
            )
        return rounded(compared.max_relative)
