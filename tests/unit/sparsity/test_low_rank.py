"""The low-rank branch: its initialisation, PEFT's reading of it, and who refuses to carry it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from compressor.core.errors import UnsupportedError, VerificationError
from compressor.models.load import load_model
from compressor.models.sparse.layers import install_sparse_layers_
from compressor.models.sparse.low_rank import (
    ADAPTER_CONFIG,
    ADAPTER_DIRECTORY,
    initial_branch,
    read_adapter,
    refuse_adapter,
    write_adapter,
)
from compressor.models.sparse.pattern import keep_mask
from compressor.quantization.fp8 import QUANTIZE, QuantizeStageConfig
from compressor.recipe.recipe import Export
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import execute
from exporters.export_stage import export_stage
from tests.tiny_models import VOCAB_SIZE
from tests.unit.sparsity.conftest import Sparsified, context

IDS = torch.arange(40).remainder(VOCAB_SIZE)[None]


@pytest.fixture
def made(sparsified: Sparsified) -> ModelArtifact:
    return sparsified.make(method="magnitude", slorb="fixed")


def test_the_branch_starts_as_published() -> None:
    weight = torch.randn(5, 32)
    mask = keep_mask(weight.abs())
    branch = initial_branch(weight, weight * mask, group_size=16)
    removed = weight * ~mask
    for i in range(5):
        for j in range(2):
            assert branch.up[i, j].item() == pytest.approx(removed[i, 16 * j : 16 * j + 16].mean().item())
    for row in range(2):
        expected = [1.0 if 16 * row <= column < 16 * row + 16 else 0.0 for column in range(32)]
        assert branch.down[row].tolist() == expected
    assert branch.num_parameters == 2 * 32 + 5 * 2


def test_constant_groups_are_restored_exactly() -> None:
    weight = torch.randn(5, 32).double()
    sparse = weight * keep_mask(weight.abs())
    branch = initial_branch(weight, sparse, group_size=16)
    inputs = torch.randn(7, 2).double().repeat_interleave(16, dim=1)
    found = inputs @ sparse.T + inputs @ branch.down.double().T @ branch.up.double().T
    torch.testing.assert_close(found, inputs @ weight.T, rtol=1e-5, atol=1e-5)


def test_columns_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="multiple of 16"):
        initial_branch(torch.zeros(4, 24), torch.zeros(4, 24))


def test_peft_computes_exactly_the_same(made: ModelArtifact) -> None:
    peft = pytest.importorskip("peft")
    ours = load_model(made.path, dtype="float32", device="cpu")
    plain = ours(IDS).logits
    install_sparse_layers_(ours, branches=read_adapter(made.path))
    base = load_model(made.path, dtype="float32", device="cpu")
    theirs = peft.PeftModel.from_pretrained(base, made.path / ADAPTER_DIRECTORY)
    with torch.no_grad():
        expected, found = theirs(IDS).logits, ours(IDS).logits
    assert torch.equal(found, expected)
    assert (found - plain).abs().max() > 1e-3


def test_the_branch_brings_outputs_closer(sparsified: Sparsified, made: ModelArtifact) -> None:
    dense = load_model(sparsified.dense, dtype="float32", device="cpu")
    name = "model.layers.0.mlp.down_proj"
    sparse = load_model(made.path, dtype="float32", device="cpu")
    branch = read_adapter(made.path)[name]
    inputs = torch.ones(1, 192)
    wanted = dense.get_submodule(name)(inputs)
    without = sparse.get_submodule(name)(inputs)
    assert (without + inputs @ branch.down.T @ branch.up.T - wanted).norm() < 1e-3 * (without - wanted).norm()


def test_exports_that_would_drop_it_refuse_and_huggingface_carries_it(
    sparsified: Sparsified, made: ModelArtifact, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match="onnx export cannot carry the low-rank branch"):
        execute(export_stage("onnx"), Export(), made, tmp_path / "onnx", context())
    quantize = QuantizeStageConfig(calibration=sparsified.calibration)
    with pytest.raises(UnsupportedError, match="FP8 checkpoint cannot carry"):
        execute(QUANTIZE, quantize, made, tmp_path / "fp8", context())
    carried = execute(export_stage("huggingface"), Export(), made, tmp_path / "hf", context()).artifact
    assert carried.details["checks"]["num_equal_adapters"] == 21
    assert carried.details["checks"]["sparsity"]["num_tensors"] == 21


def test_a_merge_is_refused_because_it_fills_zeros(made: ModelArtifact) -> None:
    with pytest.raises(UnsupportedError, match="would fill the zeros"):
        refuse_adapter(made.path, by="a merged checkpoint")


ADAPTER_FAULTS = {
    "alpha_pattern": {"alpha_pattern": {"layer": 4}},
    "rank_pattern": {"rank_pattern": {"layer": 4}, "alpha_pattern": {"layer": 4}},
    "use_rslora": {"use_rslora": True},
    "use_dora": {"use_dora": True},
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "bias": {"bias": "all"},
    "peft_type": {"peft_type": "IA3"},
    "target_modules": {"target_modules": ["other"]},
    "layers_to_transform": {"layers_to_transform": [0]},
    "exclude_modules": {"exclude_modules": ["layer"]},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "qalora_group_size": {"qalora_group_size": 8},
}


@pytest.mark.parametrize("field", ADAPTER_FAULTS)
def test_a_config_that_computes_something_else_is_caught(tmp_path: Path, field: str) -> None:
    write_adapter(tmp_path, {"layer": initial_branch(torch.ones(4, 32), torch.zeros(4, 32))})
    assert set(read_adapter(tmp_path)) == {"layer"}
    file = tmp_path / ADAPTER_DIRECTORY / ADAPTER_CONFIG
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"use_rslora": False, "modules_to_save": None, "peft_version": "1"}))
    assert set(read_adapter(tmp_path)) == {"layer"}  # what PEFT writes beside, and switches that are off
    file.write_text(json.dumps(config | ADAPTER_FAULTS[field]))
    with pytest.raises(VerificationError, match=field):
        read_adapter(tmp_path)


def test_tensors_and_config_of_different_layers_are_caught(tmp_path: Path) -> None:
    branches = {name: initial_branch(torch.ones(4, 32), torch.zeros(4, 32)) for name in ("one", "two")}
    write_adapter(tmp_path, branches)
    file = tmp_path / ADAPTER_DIRECTORY / ADAPTER_CONFIG
    config = json.loads(file.read_text())
    for kept in (["one"], ["one", "two", "three"]):
        ranks = dict.fromkeys(kept, 2)
        file.write_text(json.dumps({**config, "rank_pattern": ranks, "alpha_pattern": ranks}))
        with pytest.raises(VerificationError, match="not those of its config"):
            read_adapter(tmp_path)


def test_an_adapter_saved_again_by_peft_is_read(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    write_adapter(tmp_path, {"layer": initial_branch(torch.ones(4, 32), torch.zeros(4, 32))})
    folder = tmp_path / ADAPTER_DIRECTORY
    peft.LoraConfig.from_pretrained(folder).save_pretrained(folder)
    assert set(read_adapter(tmp_path)) == {"layer"}
