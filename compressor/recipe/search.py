"""The recipe's section about trying several shapes of a size and taking the best."""

from __future__ import annotations

from typing import ClassVar

from compressor.recipe.forms import Tokens
from compressor.recipe.option import Section, option
from compressor.recipe.training import Distill

DEFAULT_CANDIDATES = 8
# The published search trained each shape on 1.8 billion tokens before 94 billion of the winner
# (arXiv 2407.14679, section 3.2).
SHARE_OF_TRAINING = 0.02
FEWEST_SEQUENCES = 16


class Search(Section):
    """A search among the shapes of about the target's size."""

    heading: ClassVar[str] = "Search"
    prefix: ClassVar[str] = "search"

    candidates: int | None = option(
        None,
        "Try N shapes whose size is within 5 % of the target: each is pruned, repaired and trained shortly, "
        f"and the best is taken. By default `search` tries {DEFAULT_CANDIDATES}, and a run none.",
        flag="--search",
        ge=2,
        metavar="N",
    )
    tokens: Tokens | None = option(
        None,
        "Training tokens for each shape of a search; by default 2 % of the distillation's, at least 16 "
        "sequences.",
        ge=1,
        metavar="COUNT",
    )

    def training(self, distill: Distill) -> Distill:
        """The short training that every shape gets: the distillation's, but short and by itself.

        Its teacher is the original model in memory; nothing is sampled, corrected or tracked, and the warm-up
        is a share of its own few steps.
        """
        usual = max(round(SHARE_OF_TRAINING * distill.tokens), FEWEST_SEQUENCES * distill.context_length)
        without = Distill()
        changes = {"tokens": self.tokens or usual, "report_to": (), "teacher_logits": None}
        changes |= {name: getattr(without, name) for name in ("correction", "generate", "warmup_steps")}
        return distill.model_copy(update=changes)
