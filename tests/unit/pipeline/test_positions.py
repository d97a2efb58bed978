"""Lengths beyond a model's positions, which a graph does not read, are refused before the run."""

from __future__ import annotations

from typing import Any

import pytest

from compressor.core.errors import UsageError
from compressor.pipeline.exported import require_positions
from compressor.recipe.recipe import load_recipe

CONFIG = {"model_type": "llama", "max_position_embeddings": 512}
GRAPHS = {"model": "smollm2-135m", "target": "60%", "bench.runtime": "onnxruntime", "evaluate.seq_len": 64}
EVALUATED = {**GRAPHS, "evaluate.exports": True, "evaluate.seq_len": 513, "bench.isl_osl": "64/32"}


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({**GRAPHS, "bench.isl_osl": "64/32,500/13"}, "--isl-osl"),
        ({**GRAPHS, "bench.preset": "minitron-blog"}, "--preset"),
        (EVALUATED, "--eval-seq-len"),
    ],
)
def test_lengths_that_a_graph_does_not_read_are_refused(given: dict[str, Any], option: str) -> None:
    with pytest.raises(UsageError, match="longer than an export's graph") as caught:
        require_positions(load_recipe(None, given), dict(CONFIG))
    assert option in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {**GRAPHS, "bench.isl_osl": "64/32,500/12"},
        {**GRAPHS, "bench.isl_osl": "500/500", "bench.runtime": "none"},
        {**GRAPHS, "bench.isl_osl": "500/500", "bench.runtime": "torch"},
        {**EVALUATED, "evaluate.exports": False},
    ],
)
def test_their_neighbours_are_not(given: dict[str, Any]) -> None:
    require_positions(load_recipe(None, given), dict(CONFIG))


def test_a_silent_config_has_the_positions_of_its_class() -> None:
    require_positions(load_recipe(None, {**GRAPHS, "bench.isl_osl": "2000/48"}), {"model_type": "llama"})
    with pytest.raises(UsageError, match="at most 2,048 tokens"):
        require_positions(load_recipe(None, {**GRAPHS, "bench.isl_osl": "2000/49"}), {"model_type": "llama"})
