"""The recipe's section about trying several shapes of a size and taking the best."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator

from compressor.recipe.forms import Tokens, is_count
from compressor.recipe.option import Section, option
from compressor.recipe.training import Distill

DEFAULT_CANDIDATES = 8
# The published search trained each shape on 1.8 billion tokens before 94 billion of the winner
# (arXiv 2407.14679, section 3.2).
SHARE_OF_TRAINING = 0.02
FEWEST_SEQUENCES = 16


def parse_shard(text: str) -> tuple[int, int]:
    """`1/4` as the first of four shares.

    Raises:
        ValueError: for anything but two numbers, the first not above the second.
    """
    first, _, second = text.partition("/")
    if not (is_count(first) and is_count(second)) or not 1 <= int(first) <= int(second):
        raise ValueError(f"{text[:40]!r} is not a share such as 1/4, the first of four")
    return int(first), int(second)


def _checked(text: str) -> str:
    parse_shard(text)
    return text


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
    shard: Annotated[str, AfterValidator(_checked)] | None = option(
        None,
        "Only do a share of the work, such as 1/4 for the first of four; when all shares are there, the same "
        "command without it compares them.",
        course=True,
        metavar="I/N",
    )

    def training(self, distill: Distill) -> Distill:
        """The short training that every shape gets: the distillation's, but short and by itself.

        Its teacher is the original model in memory; nothing is sampled, corrected or tracked.
        """
        usual = max(round(SHARE_OF_TRAINING * distill.tokens), FEWEST_SEQUENCES * distill.context_length)
        without = Distill()
        changes = {"tokens": self.tokens or usual, "report_to": (), "teacher_logits": None}
        changes |= {name: getattr(without, name) for name in ("correction", "generate")}
        return distill.model_copy(update=changes)
