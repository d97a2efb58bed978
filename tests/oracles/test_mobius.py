"""Both kinds of ONNX graph of every family against those of another program, mobius."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.core.console import Console
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from compressor.models.families import FAMILIES
from exporters.onnx.runtime import OnnxModel
from exporters.registry import exporter_of
from exporters.verification.logits import VerifyOptions
from tests.mobius_graphs import mobius_graph
from tests.tiny_models import MODEL_TYPES, make_model, save_checkpoint
from tests.unit.exporters.onnx_standard.graphs import (
    assert_close,
    open_graph,
    random_ids,
    write_float32_graph,
)

OPTIONS = VerifyOptions(console=Console())


@pytest.mark.parametrize("family", MODEL_TYPES)
def test_every_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    overrides = {"sliding_window": None} if family == "mistral" else {}
    student = save_checkpoint(tmp_path / "student", make_model(family, **overrides))
    token_ids = random_ids(60)
    expected = mobius_graph(student, tmp_path / "mobius").logits_in_two_steps(token_ids, first=25)
    standard = open_graph(write_float32_graph(student, tmp_path / "standard", monkeypatch), student)
    assert_close(standard.logits_in_steps(token_ids, [25, 1, 34]), expected)
    if FAMILIES[family].genai:
        made = tmp_path / "genai"
        made.mkdir()
        exporter_of("onnx").write(student, made, OPTIONS)
        genai = OnnxModel(made, dims_of_config(read_config(student)))
        assert_close(genai.logits_in_two_steps(token_ids, first=25), expected)
