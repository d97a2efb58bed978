"""The tensors of a GGUF file: their Hugging Face names, and their values dequantised row by row.

Every tensor of the file has a place in the model, or is refused by name; every weight of the model is in
the file. llama.cpp rotates neighbouring channels of a llama head and transformers halves of it, so
convert_hf_to_gguf.py permutes the rows of q and k, which is undone here; and it adds the 1 of Nemotron's
norms to their weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.core.errors import UnsupportedError, VerificationError
from compressor.models.dims import Dims
from compressor.models.gguf.header import ORIGINAL_CHECKPOINT, GgufHeader, GgufTensor
from compressor.models.gguf.rope import ROPE_FACTORS

if TYPE_CHECKING:
    import torch

    from compressor.models.checkpoint import TensorSpec

_BLOCK_VALUES = 1 << 23  # 32 MiB as float32
_NAMED = 8
# By part of a model.
_NAMES = {
    "embedding": "token_embd",
    "attention_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "o": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "final_norm": "output_norm",
    "head": "output",
}


def tensor_names(dims: Dims) -> dict[str, str]:
    """The GGUF name of every weight of a model, by its Hugging Face name."""
    names = {}
    for name, (weight, layer) in dims.weights().items():
        (part,) = weight.rows
        prefix = "" if layer is None else f"blk.{layer}."
        names[name] = f"{prefix}{_NAMES[part]}.{weight.kind}"
    return names


def check_names(header: GgufHeader, dims: Dims) -> None:
    """Refuse a tensor that the model has no place for (unsupported), and a file without one that it needs."""
    expected = set(tensor_names(dims).values())
    foreign = [name for name in header.tensors if name not in expected and name != ROPE_FACTORS]
    if foreign:
        more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
        raise UnsupportedError(
            f"the GGUF file holds tensors that a {dims.model_type} model of this project has no place for",
            where=str(header.path),
            found=", ".join(foreign[:_NAMED]) + more,
            hint=ORIGINAL_CHECKPOINT,
        )
    missing = sorted(expected - set(header.tensors))
    if missing:
        raise VerificationError(
            "the GGUF file lacks a tensor", where=str(header.path), expected=", ".join(missing[:_NAMED])
        )


def weight_specs(header: GgufHeader, dims: Dims, dtype: torch.dtype) -> list[TensorSpec]:
    """What to write: every weight in a 16- or 32-bit dtype, made block by block.

    A tensor of another shape than the header's dimensions say is refused, and a type that holds no weights.
    """
    from compressor.models.shapes import expected_shapes

    names, specs = tensor_names(dims), []
    for name, shape in expected_shapes(dims).items():
        tensor = header.tensors[names[name]]
        if tensor.shape != shape:
            raise VerificationError(
                "a tensor of the GGUF file has not the shape that its header says",
                where=f"{header.path}: {tensor.name}",
                expected=list(shape),
                found=list(tensor.shape),
            )
        _require_readable(header, tensor)
        specs.append(_spec(header, tensor, name, dims, dtype))
    return specs


def _spec(header: GgufHeader, tensor: GgufTensor, name: str, dims: Dims, dtype: torch.dtype) -> TensorSpec:
    import torch

    from compressor.models.checkpoint import TensorSpec

    order = _row_order(tensor, dims)
    offset = dims.family.norm_offset if tensor.name.endswith("_norm.weight") else 0.0

    def blocks() -> Iterator[torch.Tensor]:
        for values in _dequantised(header, tensor, order):
            shifted = values - np.float32(offset) if offset else values
            block = torch.from_numpy(np.ascontiguousarray(shifted)).to(dtype)
            yield block if len(tensor.shape) > 1 else block.view(-1)

    return TensorSpec(name=name, shape=tensor.shape, dtype=dtype, blocks=blocks)


def _dequantised(header: GgufHeader, tensor: GgufTensor, order: Any) -> Iterator[Any]:
    """Blocks of rows as float32, in the order of the model."""
    from gguf import GGMLQuantizationType, dequantize

    raw, kind = header.raw(tensor), GGMLQuantizationType[tensor.kind]
    num_rows = max(1, _BLOCK_VALUES // tensor.shape[-1])
    for first in range(0, len(raw), num_rows):
        rows = slice(first, first + num_rows)
        taken = np.array(raw[rows if order is None else order[rows]])
        values = dequantize(taken, kind)
        if not np.isfinite(values).all():
            raise VerificationError(
                "weights are not finite", where=f"{header.path}: {tensor.name}", found="NaN or inf"
            )
        yield values


def _row_order(tensor: GgufTensor, dims: Dims) -> Any:
    """Where each row of a rotated projection of the llama architecture stands in the file; None: in order."""
    heads = {"attn_q": dims.num_attention_heads, "attn_k": dims.num_key_value_heads}
    module = tensor.name.split(".")[-2]
    if dims.family.gguf is None or not dims.family.gguf.pairs_neighbours or module not in heads:
        return None
    rows = np.arange(tensor.shape[0]).reshape(heads[module], dims.head_dim // 2, 2)
    return rows.swapaxes(1, 2).reshape(-1)


def _require_readable(header: GgufHeader, tensor: GgufTensor) -> None:
    """Refuse types without a known dequantisation, and integers."""
    from gguf import GGMLQuantizationType, dequantize

    try:
        dequantize(np.array(header.raw(tensor)[:1]), GGMLQuantizationType[tensor.kind])
    except NotImplementedError as error:
        raise UnsupportedError(
            "a tensor of the GGUF file has a type that is not dequantised here",
            where=f"{header.path}: {tensor.name}",
            found=tensor.kind,
            hint="give the same model in another quantisation, such as Q8_0 or F16",
        ) from error
