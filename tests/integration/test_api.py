"""The library: its documented example runs, raises errors of ours, and prints nothing."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest

from compressor import api
from compressor.core.errors import UsageError
from compressor.recipe.recipe import Generate, Recipe
from tests.performance.kept import ROOT

EXAMPLE = ROOT / "docs" / "examples" / "release.py"


def test_the_documented_example_runs_and_prints_nothing(
    tiny_checkpoint: Path,
    tiny_text: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec = importlib.util.spec_from_file_location("release", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    with caplog.at_level(logging.INFO, logger="compressor"):
        ratio = example.release(str(tiny_checkpoint), str(tiny_text), tmp_path)
    assert 0.5 < ratio < 2
    assert {"pruned", "student", "quality", "release"} <= {path.name for path in tmp_path.iterdir()}
    assert "distill" in caplog.text
    assert capfd.readouterr().out == ""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="compressor"):
        assert example.release(str(tiny_checkpoint), str(tiny_text), tmp_path) == ratio
    assert caplog.text.count("already there") == len(("prune", "distill", "evaluate", "export"))


def test_errors_are_raised_and_say_what_to_do(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        api.generate(str(tiny_checkpoint), tmp_path / "out", settings=Generate())
    assert caught.value.hint is not None
    with pytest.raises(UsageError, match="unknown stage"):
        api.run(Recipe(model=str(tiny_checkpoint), target="50%"), restart_from="nowhere")
    assert not list(tmp_path.iterdir())
