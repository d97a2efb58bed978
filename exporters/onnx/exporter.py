"""The ONNX exports: one class, three precisions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compressor.errors import UnsupportedError, VerificationError
from compressor.models.checkpoint import read_config
from compressor.models.dims import Dims, dims_of_config
from compressor.models.tokenizer_files import copy_tokenizer
from exporters.comparison import TOLERANCES, compare_logits
from exporters.logits import VerifyOptions, compare_models, student_logits, student_prompts
from exporters.onnx.builder import GENAI_CONFIG_FILE, Precision, build_onnx
from exporters.onnx.runtime import GraphFailureError, NotExecutableError, OnnxModel
from exporters.onnx.weights import compare_weights
from exporters.prompts import Prompt, describe_prompts
from exporters.record import Verification
from exporters.tokenizer_check import check_tokenizer

_CACHE_CHECK_TOKENS = 48
_RUNTIME = "onnxruntime-genai"
_FORMATS: dict[Precision, str] = {"fp32": "onnx", "fp16": "onnx-fp16", "int4": "onnx-int4"}


@dataclass(frozen=True)
class OnnxExporter:
    """A graph with a KV cache for ONNX Runtime GenAI."""

    precision: Precision
    libraries: tuple[str, ...] = (
        "torch",
        "transformers",
        "onnx",
        "onnx_ir",
        "onnxruntime",
        "onnxruntime-genai",
    )

    @property
    def format(self) -> str:
        """The recipe's name of the format."""
        return _FORMATS[self.precision]

    def write(self, source: Path, out_dir: Path, options: VerifyOptions) -> None:
        """Build the graph from the 16-bit checkpoint.

        Raises:
            UnsupportedError: for a family whose graphs are not confirmed.
        """
        family = dims_of_config(read_config(source)).family
        if _RUNTIME not in family.runtimes:
            raise UnsupportedError(
                f"the graph builder is not known to compute {family.model_type} models right",
                where=self.format,
                hint="leave onnx out of the formats",
            )
        options.console.info(f"building the {self.precision} ONNX graph")
        build_onnx(source, out_dir, precision=self.precision, trust_remote_code=options.trust_remote_code)
        # The builder saves a tokenizer as transformers loaded it; the student's own files are what counts.
        copy_tokenizer(source, out_dir)

    def verify(self, out_dir: Path, student: Path, options: VerifyOptions) -> Verification:
        """Compare the graph's logits at every position with the student's, and its weights where exact.

        fp16 weights are compared tensor by tensor; a CPU without fp16 kernels leaves it at that.
        """
        config = read_config(student)
        dims = dims_of_config(config)
        checks: dict[str, Any] = {
            "genai_config": _check_genai_config(out_dir, dims),
            "tokenizer": check_tokenizer(out_dir, student, trust_remote_code=options.trust_remote_code),
        }
        if self.precision == "fp16":
            checks["num_equal_initialisers"] = compare_weights(out_dir, student, dims, dtype=torch.float16)
        prompts = student_prompts(student, options)
        try:
            graph = OnnxModel(out_dir, dims)
            checks["kv_cache_max_relative"] = self._check_cache(graph, prompts[0])
            logits = compare_models(student_logits(student, options), graph.logits, prompts, options.console)
        except (NotExecutableError, GraphFailureError) as error:
            if self.precision != "fp16":
                raise VerificationError(
                    "onnxruntime cannot execute the graph", where=self.format, found=error
                ) from error
            # The CPU runtime executes some fp16 graphs and fails in others of the same builder.
            note = "this CPU runtime does not execute the graph; its weights were compared tensor by tensor"
            return Verification(format=self.format, precision=self.precision, checks=checks, notes=(note,))
        return Verification(
            format=self.format,
            precision=self.precision,
            prompts=describe_prompts(prompts),
            logits=logits,
            tolerance=TOLERANCES[self.precision],
            checks=checks,
        )

    def _check_cache(self, graph: OnnxModel, prompt: Prompt) -> float:
        """Logits computed from the KV cache against those computed at once."""
        token_ids = prompt.token_ids[:_CACHE_CHECK_TOKENS]
        at_once = graph.logits(token_ids)
        compared = compare_logits(at_once, graph.logits_in_two_steps(token_ids, first=len(token_ids) // 2))
        tolerance = TOLERANCES[self.precision]
        if tolerance is not None and compared.max_relative > tolerance.max_relative:
            raise VerificationError(
                "the graph computes something else from its KV cache",
                where=self.format,
                expected=f"at most {tolerance.max_relative:g} of the largest logit",
                found=f"{compared.max_relative:.3g}",
            )
        return float(compared.to_dict()["max_relative"])


def _check_genai_config(out_dir: Path, dims: Dims) -> str:
    """Refuse a `genai_config.json` that describes another model."""
    file = out_dir / GENAI_CONFIG_FILE
    try:
        model = json.loads(file.read_text(encoding="utf-8"))["model"]
        decoder = model["decoder"]
    except (OSError, ValueError, KeyError) as error:
        raise VerificationError("the GenAI config cannot be read", where=str(file), found=error) from error
    wanted = {
        "head_size": dims.head_dim,
        "hidden_size": dims.hidden_size,
        "num_attention_heads": dims.num_attention_heads,
        "num_hidden_layers": dims.num_hidden_layers,
        "num_key_value_heads": dims.num_key_value_heads,
    }
    found = {**{name: decoder.get(name) for name in wanted}, "vocab_size": model.get("vocab_size")}
    for name, value in {**wanted, "vocab_size": dims.vocab_size}.items():
        if found[name] != value:
            raise VerificationError(
                "the GenAI config describes another model", where=name, expected=value, found=found[name]
            )
    return "dimensions equal"
