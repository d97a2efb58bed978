"""What `compress-export verify DIR` does: check a checkpoint, an export or a whole run, from files alone.

Nothing is repaired. The first thing that is wrong is raised by name; what is returned was checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.artifact import ARTIFACT_FILE, read_artifact
from compressor.console import Console
from compressor.errors import UsageError, VerificationError
from compressor.models.checkpoint import CONFIG_FILE, CheckpointReader, check_finite, read_config
from compressor.models.dims import dims_of_config, num_parameters
from compressor.models.shapes import check_shapes, expected_shapes, repeated_head
from compressor.quantization.amax import AMAX_FILE, FP8_DIRECTORY, check_positive, read_amax
from compressor.quantization.e4m3 import E4M3
from compressor.quantization.reader import read_scales
from compressor.quantization.record import check_record, is_fp8
from compressor.sparsity.pattern import Pattern
from compressor.sparsity.promise import Promise, read_promise
from compressor.sparsity.stage import covered_weights
from compressor.stage import PARTIAL_SUFFIX
from exporters.base import EXPORTERS
from exporters.huggingface import check_fp8_checkpoint
from exporters.logits import VerifyOptions
from exporters.onnx.builder import GENAI_CONFIG_FILE
from exporters.record import VERIFICATION_FILE, check_hashes, read_verification
from exporters.sparsity import check_sparsity
from exporters.tensorrt_llm.exporter import CHECKPOINT, check_trtllm_checkpoint

SCHEMA = "compress-export/verify/1"
_STUDENT, _EXPORTS, _MANIFEST, _QUANTISED = "student", "exports", "manifest.json", "stages/quantize"
_SCALE_SUFFIXES = ("_scale",)


def verify_directory(
    directory: Path, *, console: Console | None = None, device: str = "cpu", pattern: Pattern | None = None
) -> dict[str, Any]:
    """Check a directory that this tool wrote, or any Hugging Face checkpoint.

    A run directory's exports are compared with its student again; an export on its own only against
    the sha256 of its files, and its structure. Sparsity is checked wherever it is promised.

    Args:
        directory: What to check.
        console: Progress.
        device: Torch device name of comparisons.
        pattern: Demand this pattern of every linear layer of a checkpoint's decoder, promised or not; of
            an export that has no checkpoint's config, of what it promises.

    Returns:
        `schema`, `path`, `kind`, and `checked`: one entry per directory with `path`, `kind`, `status`
        and what was found.

    Raises:
        UsageError: when there is nothing to check.
        VerificationError: naming the first file, tensor or figure that is wrong.
    """
    options = VerifyOptions(console=console or Console(quiet=True), device=device)
    if (directory / _MANIFEST).is_file():
        kind, checked = "run", _check_run(directory, options, pattern)
    else:
        kind, entry = _check_one(directory, pattern)
        checked = [entry]
    return {"schema": SCHEMA, "path": str(directory), "kind": kind, "checked": checked}


def _check_run(directory: Path, options: VerifyOptions, pattern: Pattern | None) -> list[dict[str, Any]]:
    student = directory / _STUDENT
    if not student.is_dir():
        raise UsageError("this run has no student yet", where=str(directory), hint="finish the run first")
    checked = [_check_one(student, pattern)[1]]
    exports = directory / _EXPORTS
    for export in sorted(exports.iterdir()) if exports.is_dir() else ():
        if export.name.endswith(PARTIAL_SUFFIX):
            continue
        if not (export / VERIFICATION_FILE).is_file():
            raise VerificationError(
                "an export was never verified", where=str(export), expected=VERIFICATION_FILE
            )
        _, entry = _check_one(export, pattern)
        exporter, quantised = _exporter_of(entry["format"]), directory / _QUANTISED
        # The quantize stage's artifact holds the student, and the maxima that FP8 scales come from.
        source = quantised if exporter.precision == "fp8" and quantised.is_dir() else student
        verification = exporter.verify(export, source, options)
        verification.enforce()
        figures = {kind: compared.to_dict() for kind, compared in verification.logits.items()}
        checked.append({**entry, "status": verification.status, "logits": figures})
    return checked


def _exporter_of(name: str) -> Any:
    if name not in EXPORTERS:
        raise VerificationError("the record names an unknown format", where=VERIFICATION_FILE, found=name)
    return EXPORTERS[name]


def _check_one(directory: Path, pattern: Pattern | None = None) -> tuple[str, dict[str, Any]]:
    """Check a directory by itself: recorded hashes, then the structure of what it holds."""
    entry: dict[str, Any] = {"path": str(directory)}
    kind = "checkpoint"
    if (directory / VERIFICATION_FILE).is_file():
        record = read_verification(directory)
        check_hashes(directory, record["files"])
        kind, entry["format"], entry["num_files"] = "export", record["format"], len(record["files"])
    if (directory / CHECKPOINT / CONFIG_FILE).is_file():
        entry |= check_trtllm_checkpoint(directory / CHECKPOINT)
    elif (directory / CONFIG_FILE).is_file():
        entry |= check_checkpoint(directory)
    elif not (directory / GENAI_CONFIG_FILE).is_file():
        raise UsageError(
            "there is nothing to verify here",
            where=str(directory),
            expected=f"a run, an export or a checkpoint ({_MANIFEST}, {VERIFICATION_FILE} or {CONFIG_FILE})",
        )
    if (directory / AMAX_FILE).is_file():
        for name, value in read_amax(directory).items():
            check_positive(name, value, what="a calibration statistic is unusable")
        entry |= {"fp8": check_fp8_checkpoint(directory / FP8_DIRECTORY, directory)}
    entry |= check_sparsity(directory, promise=_demanded(directory, pattern))
    return kind, {**entry, "kind": kind, "status": "ok"}


def _demanded(directory: Path, pattern: Pattern | None) -> Promise | None:
    """A promise of every linear layer of a checkpoint, where one is demanded rather than made.

    Raises:
        VerificationError: when another format does not promise the pattern.
    """
    if pattern is None:
        return None
    if not (directory / CONFIG_FILE).is_file():
        promise = read_promise(directory)
        if promise is None or promise.pattern != pattern:
            raise VerificationError(
                "this export does not promise the sparsity demanded of it",
                where=str(directory),
                expected=pattern,
                found="no promise" if promise is None else promise.pattern,
                hint="the checkpoint it was made from can be checked without a promise",
            )
        return promise
    dims = dims_of_config(read_config(directory))
    shapes = expected_shapes(dims)
    pairs = {name: (shapes[name][0], shapes[name][1]) for name in covered_weights(dims, ())}
    return Promise(pattern=pattern, model_type=dims.model_type, shapes=pairs)


def check_checkpoint(directory: Path) -> dict[str, Any]:
    """Check a Hugging Face checkpoint, 16-bit or unified FP8: headers, shapes, count, finite values, scales.

    Raises:
        VerificationError: naming the first tensor or file that is wrong.
    """
    config = read_config(directory)
    dims = dims_of_config(config)
    total = 0
    with CheckpointReader(directory) as reader:
        quantised = is_fp8(directory, reader)
        if quantised:
            check_record(directory, reader)
        check_shapes(reader, dims)
        for name in reader:
            tensor = reader.tensor(name)
            check_finite(name, tensor.float() if tensor.dtype == E4M3 else tensor)
            if not name.endswith(_SCALE_SUFFIXES) and name != repeated_head(dims):
                total += tensor.numel()
        if quantised:
            read_scales(reader, config)
    _check_count(directory, total, num_parameters(dims))
    return {"num_parameters": total, "precision": "fp8" if quantised else "16bit"}


def _check_count(directory: Path, found: int, expected: int) -> None:
    if found != expected:
        raise VerificationError(
            "the checkpoint holds another number of parameters than its config says",
            where=str(directory),
            expected=expected,
            found=found,
        )
    if (directory / ARTIFACT_FILE).is_file():
        recorded = read_artifact(directory).num_parameters
        if recorded != expected:
            raise VerificationError(
                "the artifact's record names another number of parameters",
                where=str(directory / ARTIFACT_FILE),
                expected=expected,
                found=recorded,
            )
