"""What a directory holds by itself: headers, shapes, counts, finite values, scales, promised sparsity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.core.errors import VerificationError
from compressor.models.checkpoint import CONFIG_FILE, CheckpointReader, check_finite, read_config
from compressor.models.dims import dims_of_config, num_parameters
from compressor.models.shapes import check_shapes, expected_shapes, repeated_head
from compressor.models.sparse.low_rank import (
    has_adapter,
    read_adapter,
)
from compressor.models.sparse.pattern import Pattern
from compressor.models.sparse.record import Promise, read_promise
from compressor.quantization.amax import AMAX_FILE, FP8_DIRECTORY, check_positive, read_amax
from compressor.quantization.e4m3 import E4M3
from compressor.quantization.reader import read_scales
from compressor.quantization.record import check_record, is_fp8
from compressor.runs.artifact import ARTIFACT_FILE, read_artifact
from compressor.sparsity.sparsify_stage import covered_weights
from exporters.huggingface import check_fp8_checkpoint
from exporters.onnx.builder import GENAI_CONFIG_FILE, GRAPH_FILE
from exporters.tensorrt_llm.exporter import CHECKPOINT, check_trtllm_checkpoint
from exporters.verification.sparsity import check_sparsity

_SCALE_SUFFIXES = ("_scale",)
_MATRIX = 2


def has_model(directory: Path) -> bool:
    """Whether there is a model here, in any format that can be checked."""
    names = (CONFIG_FILE, f"{CHECKPOINT}/{CONFIG_FILE}", GENAI_CONFIG_FILE)
    return any((directory / name).is_file() for name in names)


def check_structure(directory: Path, pattern: Pattern | None = None) -> dict[str, Any]:
    """Check the model in a directory without anything to compare it with.

    Args:
        directory: A checkpoint, FP8 or not, a graph, or a TensorRT-LLM export.
        pattern: Sparsity to demand, promised or not.

    Raises:
        VerificationError: naming the first tensor, file or figure that is wrong.
    """
    found: dict[str, Any] = {}
    if (directory / CHECKPOINT / CONFIG_FILE).is_file():
        found |= check_trtllm_checkpoint(directory / CHECKPOINT)
    elif (directory / CONFIG_FILE).is_file():
        found |= check_checkpoint(directory)
    elif (directory / GENAI_CONFIG_FILE).is_file():
        check_graph_files(directory)
    if (directory / AMAX_FILE).is_file():
        for name, value in read_amax(directory).items():
            check_positive(name, value, what="a calibration statistic is unusable")
        found |= {"fp8": check_fp8_checkpoint(directory / FP8_DIRECTORY, directory)}
    if has_adapter(directory):
        found |= {"num_adapters": check_adapter(directory)}
    return found | check_sparsity(directory, promise=_demanded(directory, pattern))


def check_adapter(directory: Path) -> int:
    """Check the low-rank branches beside a checkpoint; returns their number.

    Raises:
        VerificationError: for a branch of no layer, of another shape, or not finite.
    """
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


def check_graph_files(directory: Path) -> None:
    """Refuse a graph that cannot be read, or whose weights are not beside it.

    Raises:
        VerificationError: naming the file.
    """
    import onnx
    from google.protobuf.message import DecodeError

    file = directory / GRAPH_FILE
    if not file.is_file():
        raise VerificationError("the graph is missing", where=str(file))
    try:
        graph = onnx.load(file, load_external_data=False).graph
    except DecodeError as error:
        raise VerificationError("the graph is corrupt", where=str(file), found=error) from error
    locations = {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for name in sorted(locations):
        if Path(name).name != name or not (directory / name).is_file():
            raise VerificationError("the graph's weights are missing", where=str(directory / name))


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
