"""Seeded random prompts: the same token ids for every arm of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.grid import Cell
from bench.runtimes.base import Session


def make_prompts(sessions: Sequence[Session], *, cell: Cell, seed: int) -> NDArray[np.int32]:
    """Random ids `[batch_size, isl]` that every session knows and none treats as special.

    Padding ids must not occur: runtimes mask them out, and the prompt would be shorter than it looks.
    """
    vocab_size = min(session.vocab_size for session in sessions)
    special = frozenset[int]().union(*(session.special_token_ids for session in sessions))
    ordinary = np.setdiff1d(np.arange(vocab_size, dtype=np.int32), np.array(sorted(special), dtype=np.int32))
    generator = np.random.default_rng([seed, cell.isl, cell.osl, cell.batch_size])
    return generator.choice(ordinary, size=(cell.batch_size, cell.isl))
