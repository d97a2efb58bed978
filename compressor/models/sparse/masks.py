"""Which weights of a group are kept, masks packed as bits, and whether a tensor has a pattern.

Legend: R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

import torch

from compressor.core.errors import VerificationError
from compressor.models.sparse.pattern import TWO_OF_FOUR, Pattern, require_whole_groups

_BITS = 8


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
        f"a tensor that must be {pattern} sparse is not",
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
