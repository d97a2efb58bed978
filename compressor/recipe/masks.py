"""The recipe's section about masks that learn which units stay."""

from __future__ import annotations

from typing import ClassVar, Literal

from compressor.recipe.forms import Tokens
from compressor.recipe.option import Section, option

# 3200 steps of 32 sequences of 4096 tokens.
PUBLISHED_MASK_TOKENS = 419_430_400


class LearnedMasks(Section):
    """Training of masks with --importance learned-masks (Sheared LLaMA, arXiv 2310.06694).

    Text, sequence length and memory options are those of distillation.
    """

    heading: ClassVar[str] = "Learned masks"
    prefix: ClassVar[str] = "mask"

    tokens: Tokens = option(
        PUBLISHED_MASK_TOKENS,
        "Token budget of the training that learns masks, such as 100m.",
        ge=1,
        metavar="COUNT",
    )
    kind: Literal["hard-concrete", "deterministic"] = option(
        "hard-concrete",
        "What a mask is while it is learned. hard-concrete: random, 0 or 1 with learned probabilities "
        "(Sheared LLaMA); deterministic: a learned factor, counted smoothly (after arXiv 2603.08065).",
    )
    weights: Literal["trained", "frozen"] = option(
        "trained",
        "Whether the model's weights train with the masks, as published, or stay as they are.",
    )
    learning_rate: float | None = option(
        None,
        "Peak learning rate of the masks; by default 1 for hard-concrete masks and 0.05 for deterministic "
        "ones.",
        gt=0,
    )
    weight_learning_rate: float = option(
        1e-4, "Peak learning rate of the model's weights while masks are learned.", gt=0
    )
    batch_size: int | None = option(
        None,
        "Sequences per optimizer step while masks are learned; by default 32, fewer with a small budget.",
        ge=1,
    )
    target_warmup: float = option(
        0.2,
        "Share of the steps over which the masks' target goes from the whole model to the student's shape.",
        ge=0,
        le=1,
    )
    kl_weight: float = option(
        0.0,
        "Weight of the KL loss against the whole model while masks are learned; cross-entropy gets the rest.",
        ge=0,
        le=1,
    )

    @property
    def mask_learning_rate(self) -> float:
        """The masks' peak, the default of their kind filled in."""
        return self.learning_rate or {"hard-concrete": 1.0, "deterministic": 0.05}[self.kind]
