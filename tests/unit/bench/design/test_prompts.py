from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.design.grid import Cell
from bench.design.prompts import make_prompts

CELL = Cell(isl=200, osl=1, batch_size=3)


def test_prompts_are_known_to_both_arms_and_special_to_neither(scripted: Callable[..., Any]) -> None:
    wide = scripted("A", (), vocab_size=50, special_token_ids=frozenset({0, 49}))
    narrow = scripted("B", (), vocab_size=10, special_token_ids=frozenset({3, 12}))
    prompts = make_prompts((wide, narrow), cell=CELL, seed=0)
    assert prompts.shape == (3, 200)
    assert prompts.dtype == np.int32
    assert set(prompts.flatten().tolist()) == {1, 2, 4, 5, 6, 7, 8, 9}


def test_prompts_depend_on_seed_and_cell_only(scripted: Callable[..., Any]) -> None:
    session = scripted("A", ())
    prompts = make_prompts((session,), cell=CELL, seed=1)
    assert np.array_equal(prompts, make_prompts((session, session), cell=CELL, seed=1))
    assert not np.array_equal(prompts, make_prompts((session,), cell=CELL, seed=2))
