"""What a verbose build log says of 2:4 sparsity, and what its last lines say of a failure."""

from __future__ import annotations

import re

from exporters.verification.record import SparseTactics

_ELIGIBLE = re.compile(r"\(Sparsity\) Found (\d+) layer\(s\) eligible to use sparse tactics")
_CHOSEN = re.compile(r"\(Sparsity\) Chose (\d+) layer\(s\) using sparse tactics")
_NUM_LINES = 12


def sparse_tactics(log: str) -> SparseTactics:
    """Layers eligible for and using sparse tactics, over all ranks of a log."""
    eligible, chosen = ([int(count) for count in pattern.findall(log)] for pattern in (_ELIGIBLE, _CHOSEN))
    num_chosen = sum(chosen) if chosen else None
    verdict = "unknown: the log does not say"
    if num_chosen is not None:
        verdict = "sparse" if num_chosen else "dense: no sparse tactic was chosen"
    num_eligible = sum(eligible) if eligible else None
    return SparseTactics(num_eligible=num_eligible, num_chosen=num_chosen, engine=verdict)


def last_lines(log: str) -> str:
    """The end of a log; progress bars count as lines of their own."""
    lines = [line for line in log.splitlines() if line.strip()]
    return "\n".join(lines[-_NUM_LINES:])
