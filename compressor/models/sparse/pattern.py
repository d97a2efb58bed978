"""N:M sparsity patterns, and the tensors that they fit. No torch.

A group is M consecutive weights along the input dimension (the last one of a `[out, in]` matrix); at
most N of them are not zero. 2:4 is what sparse tensor cores execute.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from compressor.core.errors import UnsupportedError, UsageError


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
