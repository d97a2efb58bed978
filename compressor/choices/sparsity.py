"""Methods that choose which weights of a matrix stay: N of every M along the input dimension."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.choices.row import Row, table


@dataclass(frozen=True, kw_only=True)
class SparsityMethod(Row):
    """Code as `compressor.sparsity.method` describes it, measured on the calibration text.

    Attributes:
        changes_kept_weights: Whether kept weights get new values; otherwise only a mask is chosen.
        trains: Whether training follows, in which the mask is selected again; `code` makes its start.
    """

    changes_kept_weights: bool = False
    trains: bool = False


SPARSITY_METHODS = table(
    SparsityMethod(
        name="magnitude",
        help="Keeps the weights with the largest absolute values.",
        code="compressor.sparsity.scores:magnitude",
    ),
    SparsityMethod(
        name="wanda",
        help="Keeps weights with the largest products of absolute value and input norm (arXiv 2306.11695).",
        code="compressor.sparsity.scores:wanda",
    ),
    SparsityMethod(
        name="ria",
        help="Like wanda, with each weight taken relative to the sums of its row and its column.",
        code="compressor.sparsity.scores:ria",
    ),
    SparsityMethod(
        name="sparsegpt",
        help="Keeps weights whose removal would raise the error most, and updates them (arXiv 2301.00774).",
        code="compressor.sparsity.sparsegpt:sparsegpt",
        changes_kept_weights=True,
    ),
    SparsityMethod(
        name="ast",
        help="Starts with sparsegpt, then trains and updates the mask during training (arXiv 2407.20584).",
        code="compressor.sparsity.sparsegpt:sparsegpt",
        changes_kept_weights=True,
        trains=True,
    ),
)
