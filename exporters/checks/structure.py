"""What a directory holds by itself, whatever its format: its model, FP8 twin, branches, recorded sparsity."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from compressor.core.errors import VerificationError
from compressor.models.checkpoint import CONFIG_FILE, read_config
from compressor.models.dims import dims_of_config
from compressor.models.shapes import expected_shapes
from compressor.models.sparse.low_rank import has_adapter
from compressor.models.sparse.pattern import Pattern
from compressor.models.sparse.record import SparsityRecord, read_sparsity
from compressor.quantization.amax import AMAX_FILE, FP8_DIRECTORY, check_positive, read_amax
from compressor.sparsity.requirements import covered_weights
from exporters.checks.checkpoint import check_adapter
from exporters.huggingface import check_fp8_checkpoint
from exporters.protocol import Exporter


def check_structure(
    directory: Path, exporter: Exporter, pattern: Pattern | None = None
) -> dict[str, JsonValue]:
    """Check the model in a directory without anything to compare it with, `pattern` demanded if given.

    The exporter is of its format; of a stage's checkpoint the one that leaves it as it is.
    """
    found: dict[str, JsonValue] = {**exporter.check_structure(directory)}
    if (directory / AMAX_FILE).is_file():
        for name, value in read_amax(directory).items():
            check_positive(name, value, what="a calibration statistic is unusable")
        found |= {"fp8": check_fp8_checkpoint(directory / FP8_DIRECTORY, directory)}
    if has_adapter(directory):
        found |= {"num_adapters": check_adapter(directory)}
    try:
        return found | exporter.sparsity(directory, sparsity=_demanded(directory, pattern))
    except VerificationError as error:
        if pattern is None or error.hint or read_sparsity(directory) is not None:
            raise
        raise VerificationError(
            error.what,
            where=error.where,
            expected=error.expected,
            found=error.found,
            hint="leave --sparsity out, or make the model sparse with `compress-export sparsify`",
        ) from None


def _demanded(directory: Path, pattern: Pattern | None) -> SparsityRecord | None:
    """A record of every linear layer of a checkpoint, where sparsity is demanded; others must have one."""
    if pattern is None:
        return None
    if not (directory / CONFIG_FILE).is_file():
        sparsity = read_sparsity(directory)
        if sparsity is None or sparsity.pattern != pattern:
            raise VerificationError(
                "this export has no record of the sparsity demanded of it",
                where=str(directory),
                expected=pattern,
                found="no record" if sparsity is None else sparsity.pattern,
                hint="the checkpoint it was made from can be checked without a record",
            )
        return sparsity
    dims = dims_of_config(read_config(directory))
    shapes = expected_shapes(dims)
    pairs = {name: (shapes[name][0], shapes[name][1]) for name in covered_weights(dims, ())}
    return SparsityRecord(pattern=pattern, model_type=dims.model_type, shapes=pairs)
