"""FP8 E4M3 with one scale per tensor: the arithmetic, as pure functions on tensors.

A tensor x is stored as round(x / s) with s = amax / 448, saturating at the format's largest value.
The division is done in float32 and rounded once; dividing in bfloat16 first would round twice.
"""

from __future__ import annotations

import torch

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0


def scale_of(amax: torch.Tensor) -> torch.Tensor:
    """The float32 scale that maps `amax` to the largest E4M3 value."""
    return amax.float() / E4M3_MAX


def to_e4m3(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`values / scale` in float32, saturated and rounded to nearest even, as float8_e4m3fn."""
    return (values.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


def from_e4m3(stored: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The float32 values that stored E4M3 numbers stand for."""
    return stored.float() * scale


def simulate(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`values` as they come out of an E4M3 kernel's input, in their own dtype."""
    return from_e4m3(to_e4m3(values, scale), scale).to(values.dtype)
