"""Which weights become sparse, and what a shape must have for it. No torch."""

from __future__ import annotations

from fnmatch import fnmatch

from compressor.core.errors import UsageError
from compressor.models.dims import Dims
from compressor.models.sparse.pattern import parse_pattern, require_whole_groups
from compressor.recipe.recipe import Sparsify


def covered_weights(dims: Dims, skip: tuple[str, ...]) -> list[str]:
    """Full names of the weights to make sparse: every linear layer of the decoder but those to skip.

    `skip` are shell patterns of full names.

    Raises:
        UsageError: when nothing is left.
    """
    names = [f"{name}.weight" for name in dims.linear_names()]
    left = [name for name in names if not any(fnmatch(name, pattern) for pattern in skip)]
    if not left:
        raise UsageError(
            "the skip list leaves nothing to sparsify", where="--skip", hint="remove some --skip patterns"
        )
    return left


def require_sparse_shape(sparsify: Sparsify, dims: Dims) -> None:
    """Refuse a shape whose linear layers do not divide into the groups of the recipe's pattern.

    Raises:
        UsageError: for what is no pattern, or a skip list without effect.
        UnsupportedError: naming the first weight that does not divide.
    """
    if sparsify.pattern is None:
        return
    pattern, weights = parse_pattern(sparsify.pattern), dims.weights()
    for skipped in sparsify.skip:
        if not any(fnmatch(f"{name}.weight", skipped) for name in dims.linear_names()):
            raise UsageError(
                "this pattern matches no linear layer, so it has no effect",
                where="--skip",
                expected=f"a shell pattern of full names, such as '*.{dims.family.linear_layers[-1]}.weight'",
                found=skipped,
                hint="correct it, or leave it out",
            )
    for name in covered_weights(dims, sparsify.skip):
        require_whole_groups(name, dims.shape_of(weights[name][0]), pattern)
