"""The TensorRT-LLM exports: one class, three precisions; the checkpoint is proven, then the engine built."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import JsonValue

from compressor.core.errors import VerificationError
from compressor.models.checkpoint import CONFIG_FILE, CheckpointReader, read_config
from compressor.models.config.class_defaults import value_of
from compressor.models.config.portable import portable_config
from compressor.models.dims import Dims, dims_of_config
from compressor.models.sparse.masks import check_pattern
from compressor.models.sparse.pattern import TWO_OF_FOUR
from compressor.models.sparse.record import SparsityRecord, read_sparsity
from compressor.models.tokenizer_files import copy_tokenizer
from compressor.quantization.amax import AMAX_FILE, FP8_DIRECTORY, read_amax
from compressor.quantization.coverage import K_SCALE
from compressor.recipe.recipe import Export
from compressor.runs.artifact import ModelArtifact
from exporters.checks.equality import expect_fields
from exporters.protocol import Exporter
from exporters.tensorrt_llm.checkpoint import write_trtllm_checkpoint
from exporters.tensorrt_llm.config import (
    Parallelism,
    check_expressible,
    check_sparse_cuts,
    format_of,
    rotary_fraction_of,
)
from exporters.tensorrt_llm.engine import CHECKPOINT, make_engine
from exporters.tensorrt_llm.fields import SEQ_LENGTH
from exporters.tensorrt_llm.reader import TrtLlmReader, load_trtllm_model
from exporters.tensorrt_llm.rounding import Equal, check_stored, round_
from exporters.verification.comparison import LogitComparison
from exporters.verification.logits import (
    VerifyOptions,
    compare_models,
    student_model,
    student_prompts,
    torch_logits,
)
from exporters.verification.prompts import Prompt
from exporters.verification.record import Engine, Verification
from exporters.verification.tokenizer_check import check_tokenizer
from exporters.verification.tolerance import TOLERANCES, Tolerance

_SIXTEEN_BIT: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TensorRTLLMExporter(Exporter):
    """A TensorRT-LLM checkpoint under `checkpoint/`."""

    libraries = ("torch", "transformers", "tensorrt_llm")

    def settings(self, export: Export) -> Export:
        """How the checkpoint is cut into ranks, and what the engine is built for."""
        return Export(tensorrt_llm=export.tensorrt_llm)

    def check(self, config: dict[str, object], export: Export, sparsity: SparsityRecord | None) -> None:
        """Refuse what such a checkpoint cannot express, from config and sparsity record alone."""
        dims, parallelism = dims_of_config(config), _parallelism(export)
        check_expressible(config, dims, parallelism)
        if sparsity is not None:
            check_sparse_cuts(sparsity, dims, parallelism.tp_size)

    def write(self, source: Path, out_dir: Path, options: VerifyOptions) -> None:
        """Write the checkpoint; FP8 takes the quantize stage's recorded maxima."""
        directory = out_dir / CHECKPOINT
        directory.mkdir()
        is_fp8 = self.precision == "fp8"
        write_trtllm_checkpoint(
            source,
            directory,
            dtype=self._dtype(read_config(source)),
            parallelism=_parallelism(options.export),
            amax=read_amax(source) if is_fp8 else None,
            fp8_kv_cache=is_fp8 and _has_fp8_kv_cache(source),
        )
        # Beside the checkpoint, whose directory trtllm-build reads: servers are given it as the tokenizer.
        copy_tokenizer(source, out_dir)

    def verify(self, out_dir: Path, student: Path, options: VerifyOptions) -> Verification:
        """Read the checkpoint back: every number, the config, and the logits of what was written.

        The logits must equal those of the student rounded here to what the checkpoint must hold; their
        distance to the student itself is reported, and bounded where the cast should lose little.
        """
        amax = read_amax(student) if (student / AMAX_FILE).is_file() else None
        with TrtLlmReader(out_dir / CHECKPOINT) as reader, CheckpointReader(student) as original:
            reader.check_scales()
            config = _check_config(reader, read_config(student))
            self._check_precision(reader, student)
            equal = check_stored(reader, original, amax)
            mapping = reader.raw["mapping"]
            prompts = student_prompts(student, options)
            logits, num_positions = self._compare(reader, out_dir, student, prompts, options)
        checks: dict[str, JsonValue] = {
            "num_equal_tensors": equal.num_tensors,
            "num_equal_fp8_weights": equal.num_fp8_weights,
            "scales_follow_recorded_amax": self.precision == "fp8" and amax is not None,
            "config": config,
            "tokenizer": check_tokenizer(out_dir, student, trust_remote_code=options.trust_remote_code),
            "mapping": mapping,
            "num_positions_equal_to_rounded_student": num_positions,
        }
        return self.verification(
            checks,
            prompts=prompts,
            logits=logits,
            tolerance=self._tolerance(equal),
            notes=("what the files hold, computed in float32 by PyTorch; TensorRT-LLM was not run",),
        )

    def check_structure(self, directory: Path) -> dict[str, JsonValue]:
        """Check names, dtypes, shapes, finite values, scales, and that ranks agree."""
        with TrtLlmReader(directory / CHECKPOINT) as reader:
            reader.check_shapes()
            reader.check_scales()
            return {
                "num_tensors": len(reader.tensors),
                "mapping": reader.raw["mapping"],
                "fp8": reader.is_fp8,
            }

    def check_sparsity(self, directory: Path, sparsity: SparsityRecord) -> int:
        """Check every recorded tensor, and every rank's own part of it.

        A kernel reads groups along the columns of its rank's matrix: a cut through columns that is no
        multiple of the group moves every group behind it, however sparse the whole is.
        """
        with TrtLlmReader(directory / CHECKPOINT) as reader:
            for name in sparsity.shapes:
                check_pattern(name, reader.stored(name), sparsity.pattern)
                for number, part in enumerate(reader.own_columns(name)):
                    check_pattern(f"{name}, rank {number}", part, sparsity.pattern)
        return len(sparsity.shapes)

    def make_engine(self, out_dir: Path, source: ModelArtifact, options: VerifyOptions) -> Engine:
        """Build the engine, or leave the script that builds it."""
        sparsity = read_sparsity(out_dir)
        return make_engine(
            out_dir,
            dims_of_config(read_config(source.path)),
            options.export.tensorrt_llm,
            options.console,
            sparsity=sparsity is not None and sparsity.pattern == TWO_OF_FOUR,
        )

    def _dtype(self, config: dict[str, object]) -> torch.dtype:
        """Of what is not FP8: the precision's own, or under FP8 the student's, if it is a 16-bit one."""
        if self.precision == "fp8":
            name = str(config.get("dtype") or config.get("torch_dtype"))
            return _SIXTEEN_BIT.get(name, torch.bfloat16)
        return torch.float16 if self.precision == "fp16" else torch.bfloat16

    def _check_precision(self, reader: TrtLlmReader, student: Path) -> None:
        """Refuse a checkpoint in another precision than its format's, or without the FP8 cache asked for."""
        found: dict[str, object] = {"dtype": reader.raw["dtype"], "fp8": reader.is_fp8}
        expected: dict[str, object] = {
            "dtype": str(self._dtype(read_config(student))).removeprefix("torch."),
            "fp8": self.precision == "fp8",
        }
        if (student / FP8_DIRECTORY).is_dir():
            found["fp8_kv_cache"] = reader.has_fp8_kv_cache
            expected["fp8_kv_cache"] = self.precision == "fp8" and _has_fp8_kv_cache(student)
        what = "the checkpoint has another precision than asked for"
        expect_fields(what, expected, found, where=f"{self.row.name}: ")

    def _tolerance(self, equal: Equal) -> Tolerance | None:
        if self.precision == "fp8":
            return TOLERANCES["fp8"]
        return TOLERANCES["16bit" if equal.is_lossless else "fp16"]

    def _compare(
        self,
        reader: TrtLlmReader,
        out_dir: Path,
        student: Path,
        prompts: list[Prompt],
        options: VerifyOptions,
    ) -> tuple[dict[str, LogitComparison], int]:
        """Logits against the student's, then against those of the student rounded in place."""
        candidate = torch_logits(load_trtllm_model(out_dir / CHECKPOINT, device=options.device))
        model = student_model(student, options)
        compared = compare_models(torch_logits(model), candidate, prompts, options.console)
        round_(model, reader)
        rounded = compare_models(torch_logits(model), candidate, prompts, options.console)["all"]
        if rounded.max_abs:
            raise VerificationError(
                "the checkpoint computes something else than the student with its weights",
                where=self.row.name,
                expected="equal logits",
                found=f"{rounded.max_relative:.3g} of the largest logit",
            )
        return compared, rounded.num_positions


def _parallelism(settings: Export) -> Parallelism:
    return Parallelism(tp_size=settings.tensorrt_llm.tp_size, pp_size=settings.tensorrt_llm.pp_size)


def _has_fp8_kv_cache(source: Path) -> bool:
    """Whether the quantize stage was asked for it: then its unified checkpoint holds the scales."""
    with CheckpointReader(source / FP8_DIRECTORY) as reader:
        return any(name.endswith(K_SCALE) for name in reader)


def _check_config(reader: TrtLlmReader, student: dict[str, object]) -> str:
    """Refuse a checkpoint whose config says another model than the student's."""
    dims = dims_of_config(student)
    expected, found = _described(student, dims), _described(reader.config, reader.dims)
    expect_fields(
        "the checkpoint's config differs from the student's", expected, found, where=f"{CONFIG_FILE}: "
    )
    return "dimensions, rope, norms and activation equal"


def _described(config: dict[str, object], dims: Dims) -> dict[str, object]:
    facts, both = format_of(dims.family), portable_config(config)
    fields = (facts.norm_epsilon, "hidden_act", "max_position_embeddings", "rope_theta", "rope_scaling")
    described = {field: value_of(both, field) for field in fields}
    counts = {
        name: value
        for name, value in dims.to_dict().items()
        if not name.startswith(("tie_", "num_p", "num_non"))
    }
    fraction = rotary_fraction_of(config) if facts.writes_rotary_fraction else None
    length = config.get("seq_length", SEQ_LENGTH) if facts.writes_seq_length else None
    return {**described, **counts, "partial_rotary_factor": fraction, "seq_length": length}
