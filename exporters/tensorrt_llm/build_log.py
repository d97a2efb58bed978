"""What a verbose build log says of 2:4 sparsity, and what its last lines say of a failure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ELIGIBLE = re.compile(r"\(Sparsity\) Found (\d+) layer\(s\) eligible to use sparse tactics")
_CHOSEN = re.compile(r"\(Sparsity\) Chose (\d+) layer\(s\) using sparse tactics")
_NUM_LINES = 12


@dataclass(frozen=True, kw_only=True)
class SparseTactics:
    """How many layers could use a sparse tactic, and how many were faster with one; None: not said."""

    num_eligible: int | None
    num_chosen: int | None

    @property
    def verdict(self) -> str:
        """What the engine is."""
        if self.num_chosen is None:
            return "unknown: the log does not say"
        return "sparse" if self.num_chosen else "dense: no sparse tactic was chosen"

    def to_dict(self) -> dict[str, int | str | None]:
        """Plain values for JSON."""
        return {"num_eligible": self.num_eligible, "num_chosen": self.num_chosen, "engine": self.verdict}


def sparse_tactics(log: str) -> SparseTactics:
    """Layers eligible for and using sparse tactics, over all ranks of a log."""
    eligible, chosen = ([int(count) for count in pattern.findall(log)] for pattern in (_ELIGIBLE, _CHOSEN))
    return SparseTactics(
        num_eligible=sum(eligible) if eligible else None, num_chosen=sum(chosen) if chosen else None
    )


def last_lines(log: str) -> str:
    """The end of a log; progress bars count as lines of their own."""
    lines = [line for line in log.splitlines() if line.strip()]
    return "\n".join(lines[-_NUM_LINES:])
