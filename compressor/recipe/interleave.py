"""The recipe's section about reaching a shape in several cuts, with training between them."""

from __future__ import annotations

from typing import ClassVar

from compressor.recipe.option import OPTIONS, Section, option
from compressor.recipe.training import Distill


class Interleave(Section):
    """Small cuts with a part of the distillation after each, instead of one cut before all of it."""

    heading: ClassVar[str] = OPTIONS

    cuts: int = option(
        1,
        "Reach the student's shape in N cuts of about equal ratio, each repaired and distilled on an Nth of "
        "--tokens before the next (after Adapt-Pruner, arXiv 2502.03460).",
        flag="--interleave",
        ge=1,
        metavar="N",
    )

    @property
    def enabled(self) -> bool:
        """Whether there is more than one cut."""
        return self.cuts > 1

    def share(self, distill: Distill) -> Distill:
        """The distillation after one cut."""
        return distill.model_copy(update={"tokens": distill.tokens // self.cuts}) if self.enabled else distill
