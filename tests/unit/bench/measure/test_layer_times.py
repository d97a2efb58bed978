"""Timing models of random weights: a runtime whose clock counts layers, and real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.design.arms import Arm
from bench.design.grid import Cell
from bench.design.shape_only import write_shape
from bench.measure.layer_times import time_model
from compressor.choices.runtimes import RUNTIMES
from compressor.models.presets import PRESETS
from tests.unit.bench.toy_runtimes import STATIC

TINY = PRESETS["smollm2-135m"].dims.with_shape(vocab_size=300, hidden_size=72, intermediate_size=64)


def arm(directory: Path, num_hidden_layers: int, *, runtime: str, precision: str) -> Arm:
    dims = TINY.with_shape(num_hidden_layers=num_hidden_layers)
    write_shape(dims, directory)
    return Arm(id="a", model="a", precision=precision, path=directory, runtime=runtime, num_parameters=1)


def test_a_step_is_timed_without_its_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy's tokens come as many seconds apart as the model has layers, the first one too."""
    monkeypatch.setitem(RUNTIMES, STATIC.name, STATIC)
    for layers in (2, 5):
        model = arm(tmp_path / str(layers), layers, runtime=STATIC.name, precision="half")
        times = time_model(model, Cell(8, 100, 2), seed=0)
        assert times.step_s == pytest.approx(layers)
        assert times.prefill_s == pytest.approx(layers)


def test_a_deeper_model_takes_longer_in_a_real_runtime(tmp_path: Path) -> None:
    models = [arm(tmp_path / str(layers), layers, runtime="torch", precision="fp32") for layers in (1, 12)]
    shallow, deep = (time_model(model, Cell(8, 4, 1), seed=0) for model in models)
    assert 0 < shallow.step_s < deep.step_s
    assert 0 < shallow.prefill_s < deep.prefill_s
