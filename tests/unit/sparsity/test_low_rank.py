"""The low-rank branch: its initialisation, PEFT's reading of it, and who refuses to carry it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from compressor.core.errors import UnsupportedError, VerificationError
from compressor.data.calibration import calibration_windows
from compressor.models.load import load_model
from compressor.models.sparse.layers import install_sparse_layers_
from compressor.models.sparse.low_rank import (
    ADAPTER_CONFIG,
    ADAPTER_DIRECTORY,
    AdapterBranch,
    adds_groups,
    group_sums,
    read_adapter,
    refuse_adapter,
    write_adapter,
)
from compressor.models.tokenizer import load_tokenizer
from compressor.quantization.fp8 import QUANTIZE, QuantizeStageConfig
from compressor.recipe.recipe import Export
from compressor.repair.branch import RIDGE
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import execute
from exporters.export_stage import export_stage
from tests.tiny_models import VOCAB_SIZE
from tests.unit.sparsity.conftest import Sparsified, context

IDS = torch.arange(40).remainder(VOCAB_SIZE)[None]


@pytest.fixture
def made(sparsified: Sparsified) -> ModelArtifact:
    return sparsified.make(method="magnitude", slorb="fixed")


def branch(columns: int = 32) -> AdapterBranch:
    """One of four outputs."""
    down = group_sums(columns)
    return AdapterBranch(down=down, up=torch.ones(4, len(down)))


def test_groups_are_added_up_as_published() -> None:
    found = branch()
    for row in range(2):
        expected = [1.0 if 16 * row <= column < 16 * row + 16 else 0.0 for column in range(32)]
        assert found.down[row].tolist() == expected
    assert found.num_parameters == 2 * 32 + 4 * 2
    assert (found.rank, found.group_size) == (2, 16)
    assert adds_groups(found)
    assert not adds_groups(AdapterBranch(down=found.down + 1e-3, up=found.up))
    assert not adds_groups(AdapterBranch(down=torch.ones(3, 32), up=torch.ones(4, 3)))


def test_columns_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="multiple of 16"):
        branch(24)


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


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
def test_the_branch_lowers_the_error_of_every_layer(sparsified: Sparsified, method: str) -> None:
    layers = sparsified.make(method=method, slorb="fixed").details["layers"]
    assert len(layers) == 21
    for name, layer in layers.items():
        assert 0 < layer["relative_error_with_branch"] < layer["relative_error"], name


def test_later_layers_are_calibrated_on_what_the_branch_adds(
    sparsified: Sparsified, made: ModelArtifact
) -> None:
    """The second layer's branch is that of its inputs in the model with masks and branches."""
    dense = load_model(sparsified.dense, dtype="float32", device="cpu")
    ours = load_model(made.path, dtype="float32", device="cpu")
    branches, name = read_adapter(made.path), "model.layers.1.self_attn.q_proj"
    install_sparse_layers_(ours, branches=branches)
    inputs: list[torch.Tensor] = []
    ours.get_submodule(name).register_forward_pre_hook(lambda _m, args: inputs.append(args[0][0].double()))
    tokenizer = load_tokenizer(sparsified.dense)
    with torch.no_grad():
        for window in calibration_windows(sparsified.calibration, tokenizer, seed=0).ids:
            ours(torch.from_numpy(window.astype("int64"))[None])
    x = torch.cat(inputs)
    lost = (dense.get_submodule(name).weight - ours.get_submodule(name).weight).detach().double()
    groups = x @ branches[name].down.double().T
    system = groups.T @ groups
    system += RIDGE * system.diagonal().mean() * torch.eye(len(system))
    expected = torch.linalg.solve(system, groups.T @ (x @ lost.T)).T
    torch.testing.assert_close(branches[name].up.double(), expected, rtol=1e-3, atol=1e-4)


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
    write_adapter(tmp_path, {"layer": branch()})
    assert set(read_adapter(tmp_path)) == {"layer"}
    file = tmp_path / ADAPTER_DIRECTORY / ADAPTER_CONFIG
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"use_rslora": False, "modules_to_save": None, "peft_version": "1"}))
    assert set(read_adapter(tmp_path)) == {"layer"}  # what PEFT writes beside, and switches that are off
    file.write_text(json.dumps(config | ADAPTER_FAULTS[field]))
    with pytest.raises(VerificationError, match=field):
        read_adapter(tmp_path)


def test_tensors_and_config_of_different_layers_are_caught(tmp_path: Path) -> None:
    branches = {name: branch() for name in ("one", "two")}
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
    write_adapter(tmp_path, {"layer": branch()})
    folder = tmp_path / ADAPTER_DIRECTORY
    peft.LoraConfig.from_pretrained(folder).save_pretrained(folder)
    assert set(read_adapter(tmp_path)) == {"layer"}
