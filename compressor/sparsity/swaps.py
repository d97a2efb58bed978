"""Masks refined by swaps on the Gram matrix (arXiv 2512.10922).

A matrix that loses the weights D gives an output that is off by the squared error tr(D G D^T). Exchanging a
kept weight with a dropped one of its group changes that by a sum of a few entries of G and of D G, which is
known for every pair at once. Groups are visited from left to right, and every row makes its best exchange
where it lowers the row's error; so the error never rises, whichever method chose the mask.

Legend: R rows (outputs), C columns (inputs), M weights of a group.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from compressor.models.sparse.pattern import Pattern
from compressor.repair.least_squares import solve
from compressor.sparsity.method import DAMPENING_FRACTION, Choice


def refined(
    choice: Choice, weight_RC: torch.Tensor, gram_CC: torch.Tensor, pattern: Pattern, *, sweeps: int
) -> Choice:
    """A method's choice after swaps; where it gave new values, the best ones for the new mask.

    Args:
        choice: Of any method.
        weight_RC: The dense matrix, float32.
        gram_CC: Of its inputs, float32.
        pattern: N:M.
        sweeps: As for `refine_mask`.
    """
    kept = refine_mask(weight_RC, gram_CC, choice.keep_mask, pattern, sweeps=sweeps)
    if choice.weight is None:
        return replace(choice, keep_mask=kept)
    lost = weight_RC.masked_fill(kept, 0)
    change = solve(gram_CC, lost @ gram_CC, choice.dampening_fraction or DAMPENING_FRACTION, kept)
    return replace(choice, keep_mask=kept, weight=weight_RC - lost + change.to(weight_RC.dtype))


def refine_mask(
    weight_RC: torch.Tensor, gram_CC: torch.Tensor, keep_mask: torch.Tensor, pattern: Pattern, *, sweeps: int
) -> torch.Tensor:
    """The mask after at most `sweeps` visits of every group, sooner when nothing improves any more.

    Args:
        weight_RC: The dense matrix, float32.
        gram_CC: Of its inputs, float32.
        keep_mask: bool, to start from; not changed.
        pattern: N:M, kept by every exchange.
        sweeps: Visits of every group.
    """
    kept = keep_mask.clone()
    lost_gram = weight_RC.masked_fill(kept, 0) @ gram_CC
    for _ in range(sweeps):
        swaps = [
            _swap_(weight_RC, gram_CC, kept, lost_gram, slice(start, start + pattern.group_size))
            for start in range(0, weight_RC.shape[1], pattern.group_size)
        ]
        if not any(swaps):
            break
    return kept


def _swap_(
    weight_RC: torch.Tensor,
    gram_CC: torch.Tensor,
    kept: torch.Tensor,
    lost_gram: torch.Tensor,
    group: slice,
) -> int:
    """Make every row's best exchange within a group; how many rows had one."""
    weight, gram = weight_RC[:, group], gram_CC[group, group]
    alone = weight.square() * gram.diagonal()
    to_drop, to_keep = 2 * weight * lost_gram[:, group] + alone, alone - 2 * weight * lost_gram[:, group]
    gain = to_drop[:, :, None] + to_keep[:, None, :] - 2 * gram * weight[:, :, None] * weight[:, None, :]
    possible = kept[:, group, None] & ~kept[:, None, group]
    best, pair = gain.masked_fill(~possible, torch.inf).flatten(1).min(dim=1)
    # An exchange that only rounding makes look better would be undone by the next sweep.
    rows = (best < -1e-6 * alone.sum(dim=1)).nonzero()[:, 0]
    size = weight.shape[1]
    dropped, restored = group.start + pair[rows] // size, group.start + pair[rows] % size
    kept[rows, dropped], kept[rows, restored] = False, True
    lost_gram[rows] += (
        weight_RC[rows, dropped, None] * gram_CC[dropped]
        - weight_RC[rows, restored, None] * gram_CC[restored]
    )
    return len(rows)
