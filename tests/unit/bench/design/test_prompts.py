from __future__ import annotations

import numpy as np

from bench.design.grid import Cell
from bench.design.prompts import make_prompts
from bench.runtimes.base import Vocabulary

CELL = Cell(isl=200, osl=1, batch_size=3)
WIDE = Vocabulary(size=50, special_token_ids=(0, 49))
NARROW = Vocabulary(size=10, special_token_ids=(3, 12))


def test_prompts_are_known_to_both_arms_and_special_to_neither() -> None:
    prompts = make_prompts((WIDE, NARROW), cell=CELL, seed=0)
    assert prompts.shape == (3, 200)
    assert prompts.dtype == np.int32
    assert set(prompts.flatten().tolist()) == {1, 2, 4, 5, 6, 7, 8, 9}


def test_prompts_depend_on_seed_and_cell_only() -> None:
    prompts = make_prompts((WIDE,), cell=CELL, seed=1)
    assert np.array_equal(prompts, make_prompts((WIDE, WIDE), cell=CELL, seed=1))
    assert not np.array_equal(prompts, make_prompts((WIDE,), cell=CELL, seed=2))
