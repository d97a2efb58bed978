"""Attributes that the builder, another program, wrote into a graph, and one of them altered with onnx."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from compressor.core.errors import VerificationError
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from exporters.onnx.attributes import check_attributes
from exporters.onnx.builder import GRAPH_FILE
from tests.unit.exporters.conftest import Exports, refuses


@pytest.mark.parametrize(
    ("name", "operator", "attribute", "change"),
    [
        ("onnx", "SkipSimplifiedLayerNormalization", "epsilon", lambda value: value * 10),
        ("onnx", "SimplifiedLayerNormalization", "epsilon", lambda value: value * 0.99),
        ("onnx", "GroupQueryAttention", "scale", lambda value: value * 1.001),
        ("onnx", "GroupQueryAttention", "kv_num_heads", lambda value: value * 2),
        ("onnx-fp16", "MultiHeadAttention", "num_heads", lambda value: value * 2),
        ("onnx-fp16", "MultiHeadAttention", "scale", lambda _: None),
        ("onnx-int4", "SkipSimplifiedLayerNormalization", "epsilon", lambda value: value * 10),
    ],
)
def test_an_attribute_that_the_logits_hardly_show_is_caught(
    exports: Exports,
    tmp_path: Path,
    name: str,
    operator: str,
    attribute: str,
    change: Callable[[float], float | None],
) -> None:
    altered = exports.copy(name, tmp_path / "altered")
    model = onnx.load(altered / GRAPH_FILE, load_external_data=False)
    node = [node for node in model.graph.node if node.op_type == operator][-1]
    (stated,) = (each for each in node.attribute if each.name == attribute)
    value = change(onnx.helper.get_attribute_value(stated))
    node.attribute.remove(stated)
    if value is not None:
        node.attribute.append(onnx.helper.make_attribute(attribute, value))
    onnx.save(model, altered / GRAPH_FILE)
    refuses(name, altered, exports.student(tied=True), match=f"the graph's {attribute} is not what")


def test_a_graph_without_its_attention_is_caught(exports: Exports, tmp_path: Path) -> None:
    student = exports.student(tied=True)
    model = onnx.load(exports.make("onnx") / GRAPH_FILE, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            node.op_type = "Attention"
    onnx.save(model, tmp_path / GRAPH_FILE)

    with pytest.raises(VerificationError, match="too few nodes"):
        check_attributes(tmp_path, student, dims_of_config(read_config(student)))
