"""Seeded random prompts: the same token ids for every arm of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.design.grid import Cell
from bench.runtimes.base import Vocabulary


def make_prompts(vocabularies: Sequence[Vocabulary], *, cell: Cell, seed: int) -> NDArray[np.int32]:
    """Random ids `[batch_size, isl]` that every model knows and none treats as special.

    With a batch size per model there are rows for the larger; the smaller takes the first ones.

    Padding ids must not occur: runtimes mask them out, and the prompt would be shorter than it looks.
    """
    size = min(vocabulary.size for vocabulary in vocabularies)
    special = sorted({token_id for vocabulary in vocabularies for token_id in vocabulary.special_token_ids})
    ordinary = np.setdiff1d(np.arange(size, dtype=np.int32), np.array(special, dtype=np.int32))
    batch_size = max(cell.batch_size, cell.candidate_batch_size or 0)
    generator = np.random.default_rng([seed, cell.isl, cell.osl, cell.batch_size])
    return generator.choice(ordinary, size=(batch_size, cell.isl))
