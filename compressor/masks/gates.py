"""Random variables that decide which units stay, and how many of them are expected to.

**Hard concrete** (Louizos et al., arXiv 1712.01312; settings of Sheared LLaMA, arXiv 2310.06694): with u
uniform on (0, 1),

    s = sigmoid((ln(u / (1 - u)) + ln a) / beta),   z = clip(s (zeta - gamma) + gamma, 0, 1)
    P(z = 0) = sigmoid(beta ln(-gamma / zeta) - ln a)

so that a mask is exactly 0, or exactly 1, with a probability that its parameter ln a learns. The paper's beta
is 0.83; the released code's, taken here, 2/3.

**Deterministic**: the mask is its own parameter, not drawn and not bounded, and is counted by a soft
surrogate of the number of masks that are not 0,

    c = z² / (z² + tau)

whose width tau shrinks while the masks are learned. The idea (no noise, free values, a soft count) is that of
arXiv 2603.08065; the surrogate and its schedule are this project's.

Legend: R rows (a layer, or a key/value group of a layer), U units of a row.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

MaskKind = Literal["hard-concrete", "deterministic"]

BETA = 2 / 3
GAMMA, ZETA = -0.1, 1.1
# The released code's factor of ln a when a mask is no longer drawn.
_SHARPNESS = 0.8
_START, _START_STD = 5.0, 0.01
_BOUND = math.log(100.0)
_EPSILON = 1e-6
# tau at the beginning: a mask of 1 counts for 0.91; and at the end.
WIDEST, NARROWEST = 0.1, 1e-3


class Gates(nn.Module, ABC):
    """Masks of `[R, U]` units; their parameter is `raw`.

    Attributes:
        raw: What is learned.
    """

    def __init__(self, start: torch.Tensor) -> None:
        """Masks that begin with this parameter, `[R, U]`."""
        super().__init__()
        self.raw = nn.Parameter(start)

    @abstractmethod
    def drawn(self, uniform_RU: torch.Tensor) -> torch.Tensor:
        """Masks `[R, U]` for a step, from uniform noise."""

    @abstractmethod
    def count(self, progress: float) -> torch.Tensor:
        """How far each unit is expected to stay, `[R, U]` in (0, 1); `progress` is 0 to 1."""

    @abstractmethod
    def settled(self) -> torch.Tensor:
        """The value of every mask once it is no longer drawn, `[R, U]`."""

    def scores(self) -> torch.Tensor:
        """What ranks the units of a row, `[R, U]`."""
        return self.raw.detach()

    @torch.no_grad()
    def after_step_(self) -> None:
        """Keep the parameter where it can still move."""


class HardConcrete(Gates):
    """Hard-concrete masks; `raw` is ln a."""

    def drawn(self, uniform_RU: torch.Tensor) -> torch.Tensor:
        """Masks in [0, 1], exactly 0 or 1 with a probability each."""
        u = uniform_RU.clamp(_EPSILON, 1 - _EPSILON)
        s = torch.sigmoid((torch.log(u) - torch.log1p(-u) + self.raw) / BETA)
        return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def count(self, progress: float) -> torch.Tensor:
        """The probability of not being 0."""
        is_zero = torch.sigmoid(BETA * math.log(-GAMMA / ZETA) - self.raw)
        return (1 - is_zero).clamp(_EPSILON, 1 - _EPSILON)

    def settled(self) -> torch.Tensor:
        """sigmoid(0.8 ln a / beta), as the released code does."""
        return torch.sigmoid(_SHARPNESS * self.raw.detach() / BETA)

    @torch.no_grad()
    def after_step_(self) -> None:
        """Clamp ln a to ln 0.01 .. ln 100."""
        self.raw.clamp_(-_BOUND, _BOUND)


class Deterministic(Gates):
    """Masks that are their own parameter."""

    def drawn(self, uniform_RU: torch.Tensor) -> torch.Tensor:
        """The masks themselves; the noise is not used."""
        return self.raw

    def count(self, progress: float) -> torch.Tensor:
        """z² / (z² + tau); tau falls geometrically."""
        width = WIDEST * (NARROWEST / WIDEST) ** progress
        square = self.raw.square()
        counted: torch.Tensor = square / (square + width)
        return counted

    def settled(self) -> torch.Tensor:
        """The masks themselves."""
        return self.raw.detach()

    def scores(self) -> torch.Tensor:
        """Their size."""
        return self.raw.detach().abs()


def _hard_concrete(shape: tuple[int, int], generator: torch.Generator) -> Gates:
    return HardConcrete(_START + _START_STD * torch.randn(shape, generator=generator))


def _deterministic(shape: tuple[int, int], _generator: torch.Generator) -> Gates:
    return Deterministic(torch.ones(shape))


_KINDS: dict[MaskKind, Callable[[tuple[int, int], torch.Generator], Gates]] = {
    "hard-concrete": _hard_concrete,
    "deterministic": _deterministic,
}


def make_gates(kind: MaskKind, shape: tuple[int, int], generator: torch.Generator) -> Gates:
    """Masks `[R, U]` of a kind, all of them near 1."""
    gates = _KINDS[kind](shape, generator)
    gates.after_step_()
    return gates
