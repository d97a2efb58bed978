"""A Hugging Face checkpoint by itself: headers, shapes, counts, finite values, scales, low-rank branches."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from compressor.core.errors import VerificationError
from compressor.models.checkpoint import CheckpointReader, check_finite, read_config
from compressor.models.dims import dims_of_config, num_parameters
from compressor.models.shapes import check_shapes, expected_shapes, repeated_head
from compressor.models.sparse.low_rank import read_adapter
from compressor.quantization.e4m3 import E4M3
from compressor.quantization.reader import read_scales
from compressor.quantization.record import check_record, is_fp8
from compressor.runs.artifact import ARTIFACT_FILE, ModelArtifact, read_artifact
from exporters.checks.equality import expect_equal

_SCALE_SUFFIXES = ("_scale",)
_MATRIX = 2


def check_checkpoint(directory: Path) -> dict[str, JsonValue]:
    """Check a Hugging Face checkpoint, 16-bit or unified FP8."""
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


def check_adapter(directory: Path) -> int:
    """Refuse low-rank branches of no layer, of another shape, or not finite; returns their number."""
    shapes, branches = expected_shapes(dims_of_config(read_config(directory))), read_adapter(directory)
    for name, branch in branches.items():
        shape = shapes.get(f"{name}.weight", ())
        found = (branch.up.shape[0], branch.down.shape[-1])
        if len(shape) != _MATRIX or found != shape or branch.up.shape[-1] != branch.rank:
            raise VerificationError(
                "a low-rank branch does not fit its layer",
                where=name,
                expected=list(shape) or "a linear layer of this model",
                found=f"lora_B {list(branch.up.shape)}, lora_A {list(branch.down.shape)}",
            )
        check_finite(f"{name}.lora_A", branch.down)
        check_finite(f"{name}.lora_B", branch.up)
    return len(branches)


def _check_count(directory: Path, found: int, expected: int) -> None:
    what = "the checkpoint holds another number of parameters than its config says"
    expect_equal(what, expected, found, where=str(directory))
    if (directory / ARTIFACT_FILE).is_file():
        expect_count(directory, expected, read_artifact(directory))


def expect_count(directory: Path, expected: int, artifact: ModelArtifact) -> None:
    """Refuse a record of another number of parameters."""
    what = "the artifact's record names another number of parameters"
    expect_equal(what, expected, artifact.num_parameters, where=str(directory / ARTIFACT_FILE))
