"""The low-rank branch that takes away most of the error which a sparse weight leaves.

A SLoRB branch computes S (X x), X adding up groups of input channels (`compressor.models.sparse.low_rank`).
Beside a weight W, on tokens whose inputs are the rows of Z and whose outputs should be those of Y, the best S
is a least-squares solution again:

    S = C X^T (X G X^T + ridge)^-1,   C = (Y - Z W^T)^T Z,   G = Z^T Z

Where the wanted output is that of a dense weight on the same inputs, C = (W_dense - W) G. The published
start, the mean of what each group lost, is this with G the identity: it takes no account of inputs, nor of
what a method like SparseGPT has made up for already. The error over the tokens of G never exceeds that
without a branch, whatever the ridge.
"""

from __future__ import annotations

import torch

from compressor.models.sparse.low_rank import AdapterBranch, group_sums
from compressor.repair.least_squares import Sums, solve

# Of a branch that is fitted without windows to choose it on.
RIDGE = 1e-2


def start_branch(
    dense_OI: torch.Tensor, sparse_OI: torch.Tensor, gram_II: torch.Tensor, *, group_size: int
) -> AdapterBranch:
    """The branch that brings a sparse weight's outputs closest to the dense one's.

    Args:
        dense_OI: The weight before.
        sparse_OI: The weight now.
        gram_II: Of the layer's inputs.
        group_size: Input channels that are added up.

    Raises:
        UnsupportedError: where the inputs do not divide into groups.
        NotPositiveDefiniteError: for a Gram matrix that is none.
    """
    down = group_sums(dense_OI.shape[1], group_size)
    lost, gram = dense_OI.double() - sparse_OI.double(), gram_II.double()
    sums = Sums(gram=gram, cross=lost @ gram, error=torch.zeros(len(lost), dtype=torch.float64))
    left = grouped(sums, group_size)
    return AdapterBranch(down=down, up=solve(left.gram, left.cross, RIDGE).float().cpu())


def grouped(sums: Sums, group_size: int) -> Sums:
    """The same with inputs added up in groups: what least squares needs to know for S."""
    gram = _columns_grouped(_columns_grouped(sums.gram, group_size).T, group_size)
    return Sums(gram=gram, cross=_columns_grouped(sums.cross, group_size), error=sums.error)


def _columns_grouped(matrix: torch.Tensor, group_size: int) -> torch.Tensor:
    summed: torch.Tensor = matrix.unflatten(1, (-1, group_size)).sum(2)
    return summed
