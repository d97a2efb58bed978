"""N:M sparsity patterns: which weights of a group are kept, packed masks, and checks.

A group is M consecutive weights along the input dimension (the last one of a `[out, in]` matrix); at
most N of them are not zero. 2:4 is what sparse tensor cores execute.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from compressor.core.errors import UnsupportedError, UsageError, VerificationError

_BITS = 8


@dataclass(frozen=True)
class Pattern:
    """`num_kept` of every `group_size` consecutive weights may be non-zero."""

    num_kept: int = 2
    group_size: int = 4

    def __str__(self) -> str:
        return f"{self.num_kept}:{self.group_size}"

    @property
    def density(self) -> float:
        """Share of weights that the pattern keeps."""
        return self.num_kept / self.group_size


TWO_OF_FOUR = Pattern()


def parse_pattern(text: str) -> Pattern:
    """`2:4` as a pattern; anything that is not N:M with 0 < N < M is a UsageError."""
    match = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", text)
    pattern = Pattern(*map(int, match.groups())) if match else None
    if pattern is None or not 0 < pattern.num_kept < pattern.group_size:
        raise UsageError(
            "this is not a sparsity pattern",
            where="--sparsity",
            expected="N:M with 0 < N < M",
            found=text,
            hint="write it like --sparsity 2:4",
        )
    return pattern


def require_whole_groups(name: str, shape: tuple[int, ...], pattern: Pattern) -> None:
    """Refuse, as unsupported, a tensor whose last dimension does not divide into groups."""
    if len(shape) != 2 or shape[1] % pattern.group_size:  # noqa: PLR2004 - a matrix
        raise UnsupportedError(
            f"this tensor does not divide into groups of {pattern.group_size}",
            where=name,
            expected=f"a matrix with a multiple of {pattern.group_size} columns",
            found=list(shape),
            hint="leave it dense with --skip, or choose another shape",
        )


def keep_mask(scores_RC: torch.Tensor, pattern: Pattern = TWO_OF_FOUR) -> torch.Tensor:
    """The N highest of every group of finite scores; of equal ones the one further left is kept.

    Returns:
        bool `[rows, columns]`, True = kept, with exactly N per group.
    """
    groups = scores_RC.unflatten(-1, (-1, pattern.group_size)).unbind(-1)
    num_better = [torch.zeros_like(group, dtype=torch.uint8) for group in groups]
    for left, first in enumerate(groups):
        for right in range(left + 1, pattern.group_size):
            left_wins = first >= groups[right]
            num_better[right] += left_wins
            num_better[left] += ~left_wins
    return torch.stack([count < pattern.num_kept for count in num_better], dim=-1).flatten(-2)


def max_nonzeros(tensor: torch.Tensor, group_size: int) -> int:
    """The largest number of non-zero values in any group along the last dimension."""
    nonzero = tensor.float() != 0 if tensor.dtype.itemsize == 1 else tensor != 0
    return int(nonzero.unflatten(-1, (-1, group_size)).sum(-1, dtype=torch.int32).max())


def check_pattern(name: str, tensor: torch.Tensor, pattern: Pattern) -> None:
    """Refuse a tensor with more than N non-zeros in a group, naming the first such group."""
    require_whole_groups(name, tuple(tensor.shape), pattern)
    if max_nonzeros(tensor, pattern.group_size) <= pattern.num_kept:
        return
    nonzero = (tensor.float() != 0).unflatten(-1, (-1, pattern.group_size)).sum(-1)
    row, group = (nonzero > pattern.num_kept).nonzero()[0].tolist()
    start = group * pattern.group_size
    raise VerificationError(
        f"a tensor recorded as {pattern} sparse is not",
        where=f"{name}[{row}, {start}:{start + pattern.group_size}]",
        expected=f"at most {pattern.num_kept} non-zeros of {pattern.group_size}",
        found=int(nonzero[row, group]),
    )


def pack_mask(mask_RC: torch.Tensor) -> torch.Tensor:
    """A bool mask as bits, uint8 `[rows, ceil(columns / 8)]`; for 2:4 as small as 2-bit indices."""
    columns = mask_RC.shape[-1]
    padded = torch.nn.functional.pad(mask_RC.to(torch.uint8), (0, -columns % _BITS))
    weights = (1 << torch.arange(_BITS, device=mask_RC.device)).to(torch.uint8)
    packed: torch.Tensor = (padded.unflatten(-1, (-1, _BITS)) * weights).sum(-1, dtype=torch.uint8)
    return packed


def unpack_mask(packed: torch.Tensor, num_columns: int) -> torch.Tensor:
    """The bool mask `[rows, num_columns]` behind `pack_mask`."""
    shifts = torch.arange(_BITS, device=packed.device, dtype=torch.uint8)
    bits = (packed.unsqueeze(-1) >> shifts) & 1
    mask: torch.Tensor = bits.flatten(-2)[..., :num_columns].bool()
    return mask
