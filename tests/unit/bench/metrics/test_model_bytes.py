from __future__ import annotations

from bench.metrics.model_bytes import engine_bytes, file_bytes, weight_bytes
from bench.report.results import Absent


def test_weights_engines_and_all_files_are_counted_apart() -> None:
    checkpoint = {"model-00001.safetensors": 5, "model-00002.safetensors": 7, "tokenizer.json": 100}
    assert (weight_bytes(checkpoint), file_bytes(checkpoint)) == (12, 112)
    assert isinstance(engine_bytes(checkpoint), Absent)
    assert weight_bytes({"model.onnx": 2, "model.onnx.data": 9, "genai_config.json": 1}) == 11
    engine = {"rank0.engine": 3, "rank1.engine": 4, "config.json": 1}
    assert engine_bytes(engine) == 7
    assert isinstance(weight_bytes(engine), Absent)


def test_a_shape_without_weights_has_none() -> None:
    assert isinstance(weight_bytes({"config.json": 400, "random_weights.json": 10}), Absent)
