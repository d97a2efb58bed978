"""Prune plans that no scoring decides."""

from __future__ import annotations

from pathlib import Path

from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from compressor.pruning.importance import random_importance
from compressor.pruning.plan import PrunePlan, make_plan


def random_plan(checkpoint: Path, *, seed: int = 3, **shape: int) -> PrunePlan:
    """Units by chance; without a shape everything stays."""
    dims = dims_of_config(read_config(checkpoint))
    return make_plan(dims, dims.with_shape(**shape), random_importance(dims, seed=seed), importance="random")
