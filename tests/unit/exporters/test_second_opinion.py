"""The exported ONNX graphs against that of another program, mobius, on the same student."""

from __future__ import annotations

from pathlib import Path

from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from exporters.onnx.runtime import OnnxModel
from tests.mobius_graphs import mobius_graph
from tests.unit.exporters.conftest import Exports
from tests.unit.exporters.onnx_standard.graphs import assert_close, open_graph, random_ids


def test_both_graphs_compute_what_mobius_graph_computes(exports: Exports, tmp_path: Path) -> None:
    student, token_ids = exports.student(tied=True), random_ids(60)
    other = mobius_graph(student, tmp_path / "mobius")
    expected = other.logits_in_two_steps(token_ids, first=25)
    genai = OnnxModel(exports.make("onnx"), dims_of_config(read_config(student)))
    assert_close(genai.logits_in_two_steps(token_ids, first=25), expected)
    standard = open_graph(exports.make("onnx-standard-bf16"), student)
    assert_close(standard.logits_in_steps(token_ids, [25, 35]), expected)
