"""A checkpoint that was pruned by rotation, against its source, its plan and the components beside it.

Written from the formulas and not from the slicer: every tensor is multiplied out in float64, by the name of
its projection. What is stored must be as near to that as its dtype allows.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from compressor.core.errors import VerificationError
from compressor.runs.artifact import sha256_of_file
from exporters.checks.equality import expect_equal

_FILE = "rotation.safetensors"
_ORTHONORMAL = 1e-6
# By how much sums in float64, taken in another order, may differ, for a term of 1 and every term.
_ROUNDING = 1e-15
_ROWS = 1 << 13

# By what each matrix that reads the stream is preceded, in its layer; the head by the last norm.
_READS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj"), "input_layernorm"),
    **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj"), "post_attention_layernorm"),
}
_WRITES = ("o_proj", "down_proj")
_NORMS = ("norm", "input_layernorm", "post_attention_layernorm")


def read_components(directory: Path, stated: object, hidden_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The components beside a plan, float64, as columns, and the variance along each.

    Raises:
        VerificationError: for a file that the plan does not name, columns that are not orthonormal, or
            variances that do not descend.
    """
    file = directory / _FILE
    try:
        found, tensors = sha256_of_file(file), load_file(file)
        components, variances = tensors["components"].double(), tensors["variances"].double()
    except (OSError, SafetensorError, KeyError) as error:
        raise VerificationError("the rotation cannot be read", where=str(file), found=error) from error
    if found != stated:
        raise VerificationError(
            "the rotation is not the one that the prune plan names",
            where=str(file),
            expected=f"sha256 {stated}",
            found=f"sha256 {found}",
        )
    shapes = (tuple(components.shape), tuple(variances.shape))
    if shapes != ((hidden_size, hidden_size), (hidden_size,)):
        raise VerificationError("the rotation has not the model's size", where=str(file), found=shapes)
    odd = (components.T @ components - torch.eye(hidden_size, dtype=torch.float64)).abs().max().item()
    if not odd <= _ORTHONORMAL:
        raise VerificationError(
            "the rotation is none: its columns are not orthonormal",
            where=str(file),
            expected=f"within {_ORTHONORMAL:g}",
            found=f"{odd:g}",
        )
    if not (variances.diff() <= 0).all() or variances[-1] < 0:
        raise VerificationError("the rotation's variances do not descend", where=f"{file}: variances")
    return components, variances


def gain_before(from_name: str, module: str) -> str | None:
    """The source's norm whose gain goes into a matrix, by the matrix's name there; None without one."""
    if module == "lm_head":
        return "model.norm.weight"
    norm = _READS.get(module)
    return re.sub(r"(self_attn|mlp)\.\w+\.weight$", f"{norm}.weight", from_name) if norm else None


def expect_rotated(
    name: str, tensor: torch.Tensor, found: torch.Tensor, *, gain: torch.Tensor | None, kept: torch.Tensor
) -> None:
    """Refuse a tensor that is not what the rotation makes of the source's.

    Args:
        name: Its name in the pruned checkpoint.
        tensor: The source's, without removed heads and neurons.
        found: What is stored.
        gain: Of the norm that the source reads through; None without one.
        kept: The kept components, float64 `[H, K]`.
    """
    module = name.split(".")[-2]
    hidden_size, num_kept = kept.shape
    if module in _NORMS:
        _expect_near(name, torch.ones(num_kept, dtype=torch.float64), found)
        return
    terms = hidden_size * tensor.abs().max().item()
    if module in _WRITES:
        _expect_near(name, kept.T @ tensor.double(), found, terms=terms)
        return
    if gain is not None:
        kept = gain.double()[:, None] * kept * (hidden_size / num_kept) ** 0.5
        terms *= kept.abs().max().item()
    expect_equal("a tensor has another shape than the source", len(tensor), len(found), where=name)
    for first in range(0, len(tensor), _ROWS):
        rows = slice(first, first + _ROWS)
        _expect_near(name, tensor[rows].double() @ kept, found[rows], terms=terms)


def _expect_near(name: str, expected: torch.Tensor, found: torch.Tensor, *, terms: float = 0.0) -> None:
    """Refuse a tensor that another one of its dtype is nearer to, by more than the rounding of float64."""
    if expected.shape != found.shape:
        raise VerificationError(
            "a tensor has another shape than the rotated source",
            where=name,
            expected=list(expected.shape),
            found=list(found.shape),
        )
    nearest = (expected.to(found.dtype).double() - expected).abs()
    odd = ~((found.double() - expected).abs() <= nearest + _ROUNDING * terms)
    if odd.any():
        place = tuple(odd.nonzero()[0].tolist())
        raise VerificationError(
            "a tensor differs from the source, rotated and cut by the plan",
            where=f"{name}{list(place)}",
            expected=expected[place].item(),
            found=f"{found[place].item()} ({int(odd.sum())} of {found.numel()} differ)",
        )
