"""The shape of every weight that a model must have, and the check that a checkpoint has them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from compressor.core.errors import UnsupportedError, VerificationError
from compressor.models.checkpoint import CheckpointReader, is_harmless
from compressor.models.dims import Dims

# Under these names safetensors stores floating point of 16 bits or more.
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
_NAMED = 3  # tensors that a message names


def expected_shapes(dims: Dims) -> dict[str, tuple[int, ...]]:
    """The shape of every weight that a model of these dimensions must have, by full name."""
    return {name: dims.shape_of(weight) for name, (weight, _) in dims.weights().items()}


def check_shapes(reader: CheckpointReader, dims: Dims) -> None:
    """Refuse, naming it, a weight that is not there or has another shape than the config says.

    A tied model's checkpoint may repeat the embedding as its head, but not hold another one: which of
    the two a library takes depends on its version.
    """
    for name, shape in expected_shapes(dims).items():
        if name not in reader:
            raise VerificationError("the checkpoint lacks a tensor", where=name, expected=list(shape))
        if reader.shape(name) != shape:
            raise VerificationError(
                "a tensor has not the shape its config says",
                where=name,
                expected=list(shape),
                found=list(reader.shape(name)),
            )
    head, embedding = repeated_head(dims), f"{dims.family.embedding}.weight"
    if head in reader and not torch.equal(reader.tensor(head), reader.tensor(embedding)):
        raise VerificationError(
            "the config ties the embeddings, but the checkpoint holds a head of its own",
            where=head,
            expected=f"{embedding} again, or tie_word_embeddings: false",
            hint="set tie_word_embeddings in config.json to what the model was trained with",
        )


def check_source(reader: CheckpointReader, dims: Dims, *, where: Path) -> None:
    """Refuse a source whose tensors are not exactly the model's, each floating point; by headers alone.

    A tensor that no rule maps belongs to a computation that this project would leave out: a bias, an expert,
    a further layer. FP8 and integers mean nothing without their scales.

    Raises:
        UnsupportedError: naming the first few tensors that no rule maps, or one of FP8 or integers.
        VerificationError: see `check_shapes`.
    """
    mapped = {*expected_shapes(dims), repeated_head(dims)}
    extra = sorted(name for name in reader if name not in mapped and not is_harmless(name))
    if extra:
        more = f" and {len(extra) - _NAMED} more" if len(extra) > _NAMED else ""
        raise UnsupportedError(
            f"the source holds tensors that a {dims.model_type} model of this config does not have",
            where=str(where),
            expected=f"the tensors of {dims.model_type}, and no others",
            found=", ".join(extra[:_NAMED]) + more,
            hint="correct num_hidden_layers or model_type in config.json, or use another checkpoint",
        )
    for name in reader:
        if reader.dtype(name) not in FLOAT_DTYPES and not is_harmless(name):
            raise UnsupportedError(
                "a weight is stored as FP8 or integers in a checkpoint that does not say it is quantised",
                where=f"{where}: {name}",
                expected=", ".join(FLOAT_DTYPES),
                found=reader.dtype(name),
                hint="start from the 16-bit model it was quantised from",
            )
    check_shapes(reader, dims)


def repeated_head(dims: Dims) -> str:
    """The name under which a tied model's checkpoint may repeat its embedding; "" for an untied one."""
    return f"{dims.family.lm_head}.weight" if dims.tie_word_embeddings else ""


def is_parameter(name: str, dims: Dims) -> bool:
    """Whether a checkpoint's tensor is a parameter of its own: no repeated head, none to leave out."""
    return name != repeated_head(dims) and not is_harmless(name)


def refuse_misfit(report: Mapping[str, Collection[object]], where: Path) -> None:
    """Refuse what transformers says it initialised at random, left over or found in another shape."""
    problems = {key: sorted(map(str, report[key])) for key in report if key != "error_msgs" and report[key]}
    if problems:
        raise VerificationError("the checkpoint does not fit its config", where=str(where), found=problems)
