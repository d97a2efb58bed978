"""Tensors and files that must be, bit for bit, what a second source says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from compressor.core.errors import VerificationError
from compressor.runs.artifact import ARTIFACT_FILE, sha256_of_file

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def expect_equal(what: str, expected: object, found: object, *, where: str, hint: str | None = None) -> None:
    """Refuse whatever is not what it should be."""
    if expected != found:
        raise VerificationError(what, where=where, expected=expected, found=found, hint=hint)


def expect_bits(name: str, expected: torch.Tensor, found: torch.Tensor, *, against: str) -> None:
    """Refuse a tensor that differs from the one that `against` gives, in dtype, shape or any bit."""
    if expected.dtype != found.dtype or expected.shape != found.shape:
        raise VerificationError(
            f"a tensor has another dtype or shape than {against}",
            where=name,
            expected=f"{expected.dtype} {list(expected.shape)}",
            found=f"{found.dtype} {list(found.shape)}",
        )
    bits = _BITS[expected.element_size()]
    different = expected.contiguous().view(bits) != found.contiguous().view(bits)
    if different.any():
        place = different.nonzero()[0].tolist()
        raise VerificationError(
            f"a tensor differs from {against}",
            where=f"{name}{place}",
            expected=expected[tuple(place)].item(),
            found=f"{found[tuple(place)].item()} ({int(different.sum())} of {found.numel()} differ)",
        )


def expect_same_file(name: str, source: Path, directory: Path) -> None:
    """Refuse a file that the source has and the directory has not, or has with other bytes."""
    if not (source / name).is_file():
        return
    if not (directory / name).is_file():
        raise VerificationError(
            "a file of the source is missing", where=str(directory / name), expected=str(source / name)
        )
    if sha256_of_file(source / name) != sha256_of_file(directory / name):
        raise VerificationError(
            "a file beside the weights is not the source's",
            where=str(directory / name),
            expected=f"the bytes of {source / name}",
        )


def expect_fields(
    what: str, expected: Mapping[str, object], found: Mapping[str, object], *, where: str
) -> None:
    """Refuse fields that have other values than expected; fields that are not expected are not looked at.

    An expected None is a field that is not there; `where` stands before the field's name.
    """
    for name, value in expected.items():
        expect_equal(what, value, found.get(name), where=f"{where}{name}")


def expect_equal_fields(
    what: str, expected: Mapping[str, object], found: Mapping[str, object], *, where: str
) -> None:
    """`expect_fields`, and nothing else but null beside them."""
    every = {name: expected.get(name) for name in sorted({*expected, *found})}
    expect_fields(what, every, found, where=where)


def expect_figures(directory: Path, counted: Mapping[str, object], recorded: Mapping[str, object]) -> None:
    """Refuse a record whose figures are not those that were counted again."""
    where = f"{directory / ARTIFACT_FILE}: details."
    expect_fields("a recorded figure is not what was found", counted, recorded, where=where)
