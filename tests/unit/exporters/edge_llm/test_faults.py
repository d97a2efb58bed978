"""What is planted in an export is refused by name: numbers, operators, files, geometry."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.core.console import Console
from compressor.core.errors import VerificationError
from compressor.models.sparse.masks import keep_mask
from compressor.models.sparse.pattern import TWO_OF_FOUR
from compressor.models.sparse.record import SparsityRecord
from exporters.registry import exporter_of
from exporters.verification.logits import VerifyOptions
from tests import edge_llm_stand_in
from tests.corruptions.edge_faults import edge_faults
from tests.oracles.record_edge_llm import CASES, make_case
from tests.tiny_models import edit_json, edit_tensors
from tests.unit.exporters.edge_llm.conftest import Exported

OPTIONS = VerifyOptions(console=Console())
FP16, FP8 = "tensorrt-edge-llm", "tensorrt-edge-llm-fp8"


def verify(made: Exported, name: str) -> Any:
    return exporter_of(name).verify(made.directory, made.student, OPTIONS)


@pytest.mark.parametrize(("copied", "name"), [("llama", FP16), ("llama-fp8", FP8)], indirect=["copied"])
def test_an_untouched_export_passes(copied: Exported, name: str) -> None:
    found = verify(copied, name)
    assert found.status == "not executed"
    assert found.checks["num_equal_fp8_weights"] == (14 if name == FP8 else 0)
    assert exporter_of(name).check_structure(copied.directory) == {"num_tensors": 21, "fp8": name == FP8}


def faults(name: str) -> list[Any]:
    case = "llama-fp8" if name == FP8 else "llama"
    found = [fault for fault in edge_faults(fp8=name == FP8) if fault.name != "third non-zero"]
    return [pytest.param(case, name, fault.plant, id=f"{case}: {fault.name}") for fault in found]


@pytest.mark.parametrize(("copied", "name", "plant"), [*faults(FP16), *faults(FP8)], indirect=["copied"])
def test_a_planted_fault_is_refused(copied: Exported, name: str, plant: Callable[[Path], None]) -> None:
    plant(copied.directory)
    with pytest.raises(VerificationError):
        verify(copied, name)


@pytest.mark.parametrize("copied", ["llama-fp8-cache"], indirect=True)
def test_a_wrong_scale_of_the_cache_is_refused(copied: Exported) -> None:
    amax = load_file(copied.student / "amax.safetensors")
    other = copied.directory.parent / "student"
    shutil.copytree(copied.student, other)
    save_file({**amax, "model.layers.1.self_attn.v_amax": torch.tensor(6.0)}, other / "amax.safetensors")
    with pytest.raises(VerificationError, match="cache's scales are not the student's"):
        verify(Exported(student=other, directory=copied.directory), FP8)


@pytest.mark.parametrize("copied", ["llama"], indirect=True)
def test_another_precision_than_the_format_is_refused(copied: Exported) -> None:
    with pytest.raises(VerificationError, match="another precision"):
        verify(copied, FP8)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_key_value_heads", 4),
        ("rope_theta", 10_000.0),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("rms_norm_eps", 1e-5),
        ("max_position_embeddings", 4096),
        ("eos_token_id", [0]),
        ("sliding_window_size", 64),
        ("kv_cache_dtype", "fp8"),
        ("model", "nemotron"),
    ],
)
@pytest.mark.parametrize("copied", ["llama"], indirect=True)
def test_a_config_of_another_model_is_refused(copied: Exported, field: str, value: object) -> None:
    edit_json(copied.graph / "config.json", **{field: value})
    with pytest.raises(VerificationError):
        verify(copied, FP16)


def test_a_third_non_zero_is_refused_by_its_place(tmp_path: Path) -> None:
    student = make_case(CASES["llama"], tmp_path / "student")
    name = "model.layers.1.mlp.down_proj.weight"

    def thin(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name] * keep_mask(tensors[name].abs(), TWO_OF_FOUR)

    edit_tensors(student, thin)
    edge_llm_stand_in.write(student, tmp_path / "export" / "llm")
    shape = load_file(student / "model.safetensors")[name].shape
    record = SparsityRecord(pattern=TWO_OF_FOUR, model_type="llama", shapes={name: (shape[0], shape[1])})
    exporter = exporter_of(FP16)
    assert exporter.check_sparsity(tmp_path / "export", record) == 1
    dense = "model.layers.0.mlp.down_proj.weight"
    other = SparsityRecord(pattern=TWO_OF_FOUR, model_type="llama", shapes={dense: (shape[0], shape[1])})
    with pytest.raises(VerificationError, match=r"must be 2:4 sparse is not\n  where: model.layers.0.mlp"):
        exporter.check_sparsity(tmp_path / "export", other)
