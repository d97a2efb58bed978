"""Graphs by mobius, which shares no code with either of this tool's graphs: a second opinion on both.

It ignores sliding windows, and TensorRT's parser refuses its attention nodes (they have three outputs), so
that it checks exports here instead of writing them.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from exporters.onnx.runtime import OnnxModel


def mobius_graph(student: Path, out_dir: Path) -> OnnxModel:
    """A checkpoint's float32 graph as mobius builds it, open on the CPU."""
    mobius = pytest.importorskip("mobius", reason="mobius-onnx is not installed")
    package = mobius.build(str(student), dtype="f32", execution_provider="onnx-standard")
    (model,) = package.values()
    out_dir.mkdir()
    ir.save(model, out_dir / "model.onnx", external_data="model.onnx.data")
    return OnnxModel(out_dir, dims_of_config(read_config(student)))
