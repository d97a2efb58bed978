"""Hugging Face checkpoints: the 16-bit student as it is, and ModelOpt's unified FP8 checkpoint.

Weights are copied, never encoded again. Configs and tokenizers are written so that transformers 4.57
and 5 read the same rope and the same tokens. The FP8 checkpoint is verified through our own
dequantising reader, because stock transformers loads it without its scales.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from pydantic import JsonValue

from compressor.core.errors import UsageError, VerificationError
from compressor.core.json_files import read_json_mapping
from compressor.models.checkpoint import CONFIG_FILE, CheckpointReader, read_config
from compressor.models.config.portable import make_portable, portable_config
from compressor.models.load import copy_checkpoint
from compressor.models.sparse.low_rank import ADAPTER_DIRECTORY, has_adapter, read_adapter
from compressor.models.sparse.record import SparsityRecord, check_checkpoint_sparsity
from compressor.models.tokenizer import TOKENIZER_FILE
from compressor.models.tokenizer_files import GENERATION_CONFIG_FILE
from compressor.quantization.amax import AMAX_FILE, FP8_DIRECTORY, read_amax, recorded
from compressor.quantization.coverage import attention_modules, quantised_linears
from compressor.quantization.e4m3 import scale_of, to_e4m3
from compressor.quantization.reader import Fp8Scales, load_fp8_model, read_scales
from compressor.quantization.record import check_record
from exporters.checks.checkpoint import check_checkpoint
from exporters.checks.equality import expect_bits, expect_equal_fields
from exporters.checks.requantised import weight_scales
from exporters.protocol import Exporter
from exporters.verification.logits import (
    VerifyOptions,
    compare_models,
    student_logits,
    student_prompts,
    torch_logits,
)
from exporters.verification.record import Verification
from exporters.verification.tokenizer_check import check_tokenizer
from exporters.verification.tolerance import TOLERANCES

# Beside the tensors, all that decides what transformers computes of a text.
_DECIDING_FILES = (CONFIG_FILE, GENERATION_CONFIG_FILE, TOKENIZER_FILE, "tokenizer_config.json")


class _CheckpointExporter(Exporter):
    """What the 16-bit and the FP8 checkpoint have in common: the config travels along, nothing is refused."""

    def check_structure(self, directory: Path) -> dict[str, JsonValue]:
        """Check headers, shapes, the number of parameters, finite values and scales."""
        return check_checkpoint(directory)

    def check_sparsity(self, directory: Path, sparsity: SparsityRecord) -> int:
        """Check every recorded tensor."""
        return check_checkpoint_sparsity(directory, sparsity)


class HuggingFaceExporter(_CheckpointExporter):
    """The 16-bit checkpoint."""

    keeps_adapter = True

    @property
    def precision(self) -> str:
        """The student's own, whichever of the 16-bit ones."""
        return "16bit"

    def loads_student(self, student: Path) -> bool:
        """Only a config that has to be rewritten makes another file than the student's."""
        config = read_config(student)
        return portable_config(config) != config

    def write(self, source: Path, out_dir: Path, options: VerifyOptions) -> None:
        """Copy the checkpoint and make its config and tokenizer portable."""
        copy_checkpoint(source, out_dir)
        if has_adapter(source):
            shutil.copytree(source / ADAPTER_DIRECTORY, out_dir / ADAPTER_DIRECTORY, dirs_exist_ok=True)
        make_portable(out_dir)

    def verify(self, out_dir: Path, student: Path, options: VerifyOptions) -> Verification:
        """Reopen the copy: a whole and finite model, equal tensors, an equal portable config, equal tokens.

        Where nothing had to be rewritten for another generation of transformers, tensors, config and
        tokenizer are the student's bit for bit, and so is what they compute. Otherwise the logits must be
        equal too.
        """
        checks: dict[str, JsonValue] = {
            "num_equal_tensors": _same_tensors(out_dir, student),
            "config": _same_config(out_dir, student, without=()),
            "generation_config": _same_generation_config(out_dir, student),
            "tokenizer": check_tokenizer(out_dir, student, trust_remote_code=options.trust_remote_code),
            **_same_adapter(out_dir, student),
            "num_parameters": check_checkpoint(out_dir)["num_parameters"],
        }
        if all(_same_bytes(out_dir / name, student / name) for name in _DECIDING_FILES):
            return self.verification(checks).model_copy(update={"status": "bit-equal"})
        prompts = student_prompts(student, options)
        reference, candidate = student_logits(student, options), student_logits(out_dir, options)
        return self.verification(
            checks,
            prompts=prompts,
            logits=compare_models(reference, candidate, prompts, options.console),
            tolerance=TOLERANCES[self.precision],
        )


class HuggingFaceFp8Exporter(_CheckpointExporter):
    """ModelOpt's unified FP8 checkpoint, made by the quantize stage."""

    libraries = ("torch", "transformers", "nvidia-modelopt")

    def write(self, source: Path, out_dir: Path, options: VerifyOptions) -> None:
        """Copy the unified checkpoint out of the quantize stage's artifact; UsageError for other sources."""
        unified = source / FP8_DIRECTORY
        if not unified.is_dir():
            raise UsageError(
                "this checkpoint was not quantised",
                where=str(source),
                expected=f"{FP8_DIRECTORY}/",
                hint="run `compress-export quantize MODEL --fp8 -o DIR` and export DIR",
            )
        shutil.copytree(unified, out_dir, dirs_exist_ok=True)
        make_portable(out_dir)

    def verify(self, out_dir: Path, student: Path, options: VerifyOptions) -> Verification:
        """Check every stored number against the student's, and report the logits' distance.

        `student` may be the quantize stage's artifact, whose recorded maxima are then checked too.
        """
        prompts = student_prompts(student, options)
        checks: dict[str, JsonValue] = {
            **check_fp8_checkpoint(out_dir, student),
            "config": _same_config(out_dir, student, without=("quantization_config",)),
            "generation_config": _same_generation_config(out_dir, student),
            "tokenizer": check_tokenizer(out_dir, student, trust_remote_code=options.trust_remote_code),
        }
        candidate = torch_logits(load_fp8_model(out_dir, dtype="float32", device=options.device))
        return self.verification(
            checks,
            prompts=prompts,
            logits=compare_models(student_logits(student, options), candidate, prompts, options.console),
            tolerance=TOLERANCES[self.precision],
            notes=("activations rounded to E4M3 in software; FP8 kernels were not run",),
        )


def check_fp8_checkpoint(directory: Path, student: Path) -> dict[str, JsonValue]:
    """Check a unified FP8 checkpoint against the student, number by number.

    Every weight scale is the student's maximum over 448 (`weight_scales` says which), every FP8 weight is the
    student's rounded once with it, everything else is the student's unchanged; and all scales follow from the
    recorded maxima, where `student` holds them. Returns how many tensors of each kind were checked.
    """
    config = read_config(directory)
    with CheckpointReader(directory) as reader, CheckpointReader(student) as original:
        check_record(directory, reader)
        scales = read_scales(reader, config)
        linears, expected = quantised_linears(config), weight_scales(student)
        for name in linears:
            weight = original.tensor(f"{name}.weight")
            _expect(f"{name}.weight_scale", expected[name], scales.weights[name])
            rounded = to_e4m3(weight, scales.weights[name])
            _expect(f"{name}.weight", rounded, reader.tensor(f"{name}.weight"))
        quantised = {f"{name}.weight" for name in linears}
        unchanged = [name for name in original if name not in quantised]
        for name in unchanged:
            _expect(name, original.tensor(name), reader.tensor(name))
    recorded = (student / AMAX_FILE).is_file()
    if recorded:
        _check_recorded(scales, read_amax(student), config)
    return {
        "num_equal_fp8_weights": len(linears),
        "num_equal_tensors": len(unchanged),
        "scales_follow_recorded_amax": recorded,
    }


def _check_recorded(scales: Fp8Scales, amax: dict[str, torch.Tensor], config: dict[str, object]) -> None:
    """Every scale is its recorded maximum over 448."""
    for name in quantised_linears(config):
        for kind, found in (("weight", scales.weights[name]), ("input", scales.inputs[name])):
            expected = scale_of(recorded(amax, f"{name}.{kind}_amax"))
            _expect(f"{name}.{kind}_scale", expected, found)
    for layer, name in enumerate(attention_modules(config) if scales.keys else ()):
        _expect(f"{name}.k_scale", scale_of(recorded(amax, f"{name}.k_amax")), scales.keys[layer])
        _expect(f"{name}.v_scale", scale_of(recorded(amax, f"{name}.v_amax")), scales.values[layer])


def _expect(name: str, expected: torch.Tensor, found: torch.Tensor) -> None:
    expect_bits(name, expected, found, against="the student's")


def _same_bytes(made: Path, student: Path) -> bool:
    """Whether two small files hold the same, or are both absent."""
    if made.is_file() and student.is_file():
        return made.read_bytes() == student.read_bytes()
    return made.is_file() == student.is_file()


def _same_tensors(out_dir: Path, student: Path) -> int:
    """Refuse a tensor that is missing, added or changed; returns their number."""
    with CheckpointReader(out_dir) as reader, CheckpointReader(student) as original:
        extra = sorted(set(reader) - set(original))
        if extra:
            raise VerificationError("the export holds a tensor that the student lacks", where=extra[0])
        names = list(original)
        for name in names:
            _expect(name, original.tensor(name), reader.tensor(name))
    return len(names)


def _same_adapter(out_dir: Path, student: Path) -> dict[str, int]:
    """Refuse a low-rank branch that is missing, added or changed; returns how many layers have one."""
    if not (has_adapter(student) or has_adapter(out_dir)):
        return {}
    expected, found = read_adapter(student), read_adapter(out_dir)
    if set(expected) != set(found):
        raise VerificationError("the export's adapter covers other layers", where=ADAPTER_DIRECTORY)
    for name, branch in expected.items():
        _expect(f"{name}.lora_A", branch.down, found[name].down)
        _expect(f"{name}.lora_B", branch.up, found[name].up)
    return {"num_equal_adapters": len(expected)}


def _same_config(out_dir: Path, student: Path, *, without: tuple[str, ...]) -> str:
    """Refuse a config that says something else than the student's, in either generation's keys."""
    found = {key: value for key, value in read_config(out_dir).items() if key not in without}
    expected = portable_config(read_config(student))
    what = "the exported config differs from the student's"
    expect_equal_fields(what, expected, found, where=f"{CONFIG_FILE}: ")
    return "equal, with the keys of transformers 4.57 and 5"


def _same_generation_config(out_dir: Path, student: Path) -> str:
    """Refuse another way to generate: end tokens and sampling settings are read from there first."""
    expected, found = (
        read_json_mapping(file, what=GENERATION_CONFIG_FILE) if file.is_file() else None
        for file in (directory / GENERATION_CONFIG_FILE for directory in (student, out_dir))
    )
    what = "the exported generation config differs from the student's"
    expect_equal_fields(what, expected or {}, found or {}, where=f"{GENERATION_CONFIG_FILE}: ")
    return "none" if expected is None else "equal"
