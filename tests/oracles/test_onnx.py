"""Graphs of every family, rope form and precision against plain transformers on the original directory.

A build is a process of seconds, so that only a covering set of these runs with the unit tests.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compressor.core.console import Console
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config
from compressor.models.families import FAMILIES
from exporters.onnx.runtime import OnnxModel
from exporters.registry import exporter_of
from exporters.verification.logits import VerifyOptions
from tests.rope_forms import (
    CONTEXT,
    LARGEST_DIFFERENCE,
    ROPE_CASES,
    RopeForm,
    case_name,
    largest_difference,
    make_rope_model,
)
from tests.tiny_models import MODEL_TYPES, make_model, save_checkpoint
from tests.unit.exporters.test_rope_forms import GRAPHS, write_graph

OPTIONS = VerifyOptions(console=Console())
BUILT = [case for case in ROPE_CASES if FAMILIES[case[0]].genai and case[1].method in GRAPHS]


@pytest.mark.parametrize(("family", "form"), BUILT, ids=case_name)
def test_every_rope_form(tmp_path: Path, family: str, form: RopeForm) -> None:
    model = make_rope_model(tmp_path / "source", family, form)
    found = write_graph(model, tmp_path / "made", CONTEXT)
    assert largest_difference(found, model.logits[0, :CONTEXT]) <= LARGEST_DIFFERENCE


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", ["onnx-fp16", "onnx-int4"])
@pytest.mark.parametrize("family", [name for name in MODEL_TYPES if FAMILIES[name].genai])
def test_every_precision(tmp_path: Path, family: str, name: str, tied: bool) -> None:
    model = make_model(
        family, tie_word_embeddings=tied, **({"sliding_window": None} if family == "mistral" else {})
    )
    student, made = save_checkpoint(tmp_path / "student", model.to(torch.bfloat16)), tmp_path / "made"
    made.mkdir()
    exporter = exporter_of(name)  # type: ignore[index]
    exporter.write(student, made, OPTIONS)
    verification = exporter.verify(made, student, OPTIONS)
    if name == "onnx-fp16":
        assert verification.checks["num_equal_initialisers"] > 20
        return
    assert verification.checks["max_relative_to_student_carrying_them"] <= LARGEST_DIFFERENCE
    graph = OnnxModel(made, dims_of_config(read_config(student)), exact_activations=True)
    assert graph.logits([1, 2, 3]).shape == (3, read_config(student)["vocab_size"])
