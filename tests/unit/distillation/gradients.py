"""Comparing gradients: relative to the largest of each parameter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch


def assert_close_gradients(
    found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], *, tolerance: float
) -> None:
    for ours, reference in zip(found, expected, strict=True):
        assert (ours - reference).abs().max() <= tolerance * reference.abs().max()


def assert_same_gradients(
    one: torch.Tensor, other: torch.Tensor, parameters: Iterable[torch.Tensor], *, tolerance: float = 1e-4
) -> None:
    parameters = list(parameters)
    gradients = [torch.autograd.grad(loss, parameters) for loss in (one, other)]
    assert_close_gradients(*gradients, tolerance=tolerance)
