from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.artifact import read_artifact
from compressor.errors import UsageError, VerificationError
from compressor.models.checkpoint import WEIGHTS_FILE
from exporters.verify import verify_directory
from tests.unit.exporters.conftest import Exports


def test_a_checkpoint_an_export_and_the_quantised_artifact_pass(
    exports: Exports, any_checkpoint: Path
) -> None:
    report = verify_directory(any_checkpoint)
    assert (report["kind"], report["checked"][0]["status"]) == ("checkpoint", "ok")
    for name in ("huggingface", "huggingface-fp8", "onnx"):
        report = verify_directory(exports.make(name))
        assert (report["kind"], report["checked"][0]["format"]) == ("export", name)
    quantised = verify_directory(exports.quantised(tied=True).path)["checked"][0]
    assert quantised["fp8"]["num_equal_fp8_weights"] == 21


def test_a_record_with_another_count_is_caught(exports: Exports, tmp_path: Path) -> None:
    made = Path(shutil.copytree(exports.make("huggingface"), tmp_path / "made"))
    replace(read_artifact(made), num_parameters=7).write()
    with pytest.raises(VerificationError, match="another number of parameters"):
        verify_directory(made)


@pytest.fixture
def run_directory(exports: Exports, tmp_path: Path) -> Path:
    run = tmp_path / "run"
    shutil.copytree(exports.make("huggingface"), run / "student")
    for name in ("huggingface-fp8", "onnx"):
        shutil.copytree(exports.make(name), run / "exports" / name)
    (run / "exports" / "onnx-int4.partial").mkdir()
    (run / "manifest.json").write_text("{}")
    return run


def test_a_run_directory_is_compared_again(run_directory: Path) -> None:
    report = verify_directory(run_directory)
    statuses = {Path(entry["path"]).name: entry["status"] for entry in report["checked"]}
    assert report["kind"] == "run"
    assert statuses == {"student": "ok", "huggingface-fp8": "reported", "onnx": "passed"}
    assert report["checked"][-1]["logits"]["all"]["max_relative"] < 1e-3
    json.dumps(report)


@pytest.mark.parametrize(
    "name", ["student/config.json", "exports/onnx/model.onnx.data", "student/tokenizer.json"]
)
def test_a_changed_byte_is_caught(run_directory: Path, name: str) -> None:
    file = run_directory / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(VerificationError, match=r"has changed|is corrupt"):
        verify_directory(run_directory)


def test_a_missing_and_an_added_file_are_caught(run_directory: Path) -> None:
    (run_directory / "student" / "added.txt").write_text("x")
    with pytest.raises(VerificationError, match=r"added\.txt"):
        verify_directory(run_directory)
    (run_directory / "student" / "added.txt").unlink()
    (run_directory / "exports" / "onnx" / "genai_config.json").unlink()
    with pytest.raises(VerificationError, match=r"genai_config\.json"):
        verify_directory(run_directory)


@pytest.fixture
def checkpoint(exports: Exports, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exports.student(tied=True), tmp_path / "checkpoint"))


def test_a_truncated_file_is_caught(checkpoint: Path) -> None:
    file = checkpoint / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(VerificationError, match="truncated or corrupt"):
        verify_directory(checkpoint)


def test_wrong_tensors_are_caught_by_name(checkpoint: Path) -> None:
    original, name = load_file(checkpoint / WEIGHTS_FILE), "model.layers.1.self_attn.v_proj.weight"
    damaged = {
        "lacks a tensor": {key: value for key, value in original.items() if key != name},
        "shape": {**original, name: original[name][:16].contiguous()},
        "not finite": {**original, name: torch.full_like(original[name], float("nan"))},
        "number of parameters": {**original, "extra": torch.ones(3)},
    }
    for message, tensors in damaged.items():
        save_file(tensors, checkpoint / WEIGHTS_FILE, metadata={"format": "pt"})
        with pytest.raises(VerificationError, match=message):
            verify_directory(checkpoint)


def test_nan_in_fp8_is_caught(exports: Exports, tmp_path: Path) -> None:
    made = Path(shutil.copytree(exports.make("huggingface-fp8"), tmp_path / "fp8"))
    (made / "verification.json").unlink()
    (made / "artifact.json").unlink()
    assert verify_directory(made)["checked"][0]["precision"] == "fp8"
    tensors = load_file(made / WEIGHTS_FILE)
    stored = tensors["model.layers.0.mlp.up_proj.weight"].view(torch.uint8)
    stored[0, 0] = 0x7F
    save_file(tensors, made / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(VerificationError, match=r"not finite[\s\S]*layers\.0\.mlp\.up_proj"):
        verify_directory(made)


def test_an_export_without_a_record_is_caught(run_directory: Path) -> None:
    (run_directory / "exports" / "onnx" / "verification.json").unlink()
    with pytest.raises(VerificationError, match="never verified"):
        verify_directory(run_directory)


def test_nothing_to_verify_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to verify"):
        verify_directory(tmp_path)
