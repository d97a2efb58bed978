"""What verification counts by hand is what the search predicts, for every family."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.report.results import Rates
from compressor.models.checkpoint import read_config
from compressor.models.dims import dims_of_config, num_parameters
from compressor.search.predict import predicted_speedup
from exporters.checks.searched import _count, _floors_s
from tests.tiny_models import MODEL_TYPES, make_model, save_checkpoint


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_sizes_and_speeds_agree(model_type: str, is_tied: bool, tmp_path: Path) -> None:
    source = save_checkpoint(tmp_path / "model", make_model(model_type, tie_word_embeddings=is_tied))
    teacher = dims_of_config(read_config(source))
    shape = {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    student = teacher.with_shape(**shape)
    count = _count(source, asdict(student))
    assert count == num_parameters(student)
    cells = ((16, 4, 2), (100, 9, 1))
    rates = Rates(bandwidth_bytes_per_s=1e9, matmul_ops_per_s={"bf16": 1e11}, device="a machine")
    record = {"precision": "bf16", "cells": cells, "rates": rates.model_dump()}
    sizes = ((num_parameters(teacher), teacher), (count, student))
    slow, fast = (_floors_s(number, asdict(dims), record) for number, dims in sizes)
    by_hand = math.prod(one / other for one, other in zip(slow, fast, strict=True)) ** (1 / len(cells))
    found = predicted_speedup(teacher, student, cells=cells, rates=rates, precision="bf16")
    assert found == pytest.approx(by_hand, rel=1e-9)
