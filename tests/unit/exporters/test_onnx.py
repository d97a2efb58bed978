from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.artifact import read_artifact, record_files
from compressor.errors import AccuracyGateError, DependencyError, VerificationError
from compressor.models.checkpoint import WEIGHTS_FILE, read_config
from compressor.models.dims import dims_of_config
from compressor.models.load import load_model
from compressor.recipe import Export, ExportFormat
from compressor.stage import execute
from exporters.base import EXPORTERS, export_stage
from exporters.onnx import builder, exporter
from exporters.onnx.builder import build_onnx
from exporters.onnx.runtime import NotExecutableError, OnnxModel
from exporters.onnx.weights import compare_weights
from exporters.record import VERIFICATION_FILE
from tests.unit.exporters.conftest import OPTIONS, Exports, artifact_of, context

GRAPHS: tuple[ExportFormat, ...] = ("onnx", "onnx-fp16", "onnx-int4")


def record_of(made: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((made / VERIFICATION_FILE).read_text())
    return record


@pytest.mark.parametrize("tied", [True, False])
def test_fp32_agrees_at_every_position(exports: Exports, tied: bool) -> None:
    record = record_of(exports.make("onnx", tied=tied))
    assert record["status"] == "passed"
    assert record["logits"]["all"]["max_relative"] < 1e-4
    assert record["logits"]["all"]["top1_agreement"] >= 0.999
    assert record["logits"]["all"]["num_positions"] >= 2000
    assert record["checks"]["kv_cache_max_relative"] < 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_fp16_weights_are_the_students_cast(exports: Exports, tied: bool) -> None:
    record = record_of(exports.make("onnx-fp16", tied=tied))
    # Per layer q, k and v joined or not, o, gate, up, down, two norms; final norm, head, embedding.
    num_per_layer = (record["checks"]["num_equal_initialisers"] - (2 if tied else 3)) / 3
    assert num_per_layer in (7, 9)
    assert record["status"] in ("passed", "not executed")


def test_int4_is_reported_and_gated_when_asked(exports: Exports, tmp_path: Path) -> None:
    record = record_of(exports.make("onnx-int4"))
    assert (record["status"], record["tolerance"]) == ("reported", None)
    agreement = record["logits"]["all"]["top1_agreement"]
    assert 0 < agreement < 1
    source, stage = artifact_of(exports.student(tied=True)), export_stage("onnx-int4")
    with pytest.raises(AccuracyGateError, match="int4 agrees"):
        execute(stage, Export(int4_min_top1=0.9999), source, tmp_path / "made", context())
    assert not (tmp_path / "made").exists()


def test_the_built_files_are_complete_and_portable(exports: Exports) -> None:
    made = exports.make("onnx")
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"} <= set(
        read_artifact(made).files
    )
    assert not [path for path in made.rglob("*") if path.name.startswith((".build-", "cache"))]
    for name in ("genai_config.json", VERIFICATION_FILE, "artifact.json"):
        assert str(exports.root) not in (made / name).read_text()


def test_exports_are_byte_identical_from_run_to_run(exports: Exports) -> None:
    first, second = exports.make("onnx-int4"), exports.make("onnx-int4", copy="-again")
    assert record_files(first) == record_files(second)
    assert record_of(first) == record_of(second)


def test_logits_from_the_cache_equal_those_at_once(exports: Exports) -> None:
    student = exports.student(tied=True)
    graph = OnnxModel(exports.make("onnx"), dims_of_config(read_config(student)))
    token_ids = list(range(5, 45))
    with torch.no_grad():
        expected = load_model(student, dtype="float32", device="cpu")(torch.tensor([token_ids])).logits[0]
    for found in (graph.logits(token_ids), graph.logits_in_two_steps(token_ids, first=11)):
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_graph_of_another_model_is_caught(exports: Exports, tmp_path: Path) -> None:
    student = tmp_path / "student"
    shutil.copytree(exports.student(tied=True), student)
    tensors = load_file(student / WEIGHTS_FILE)
    gate, up = (f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up"))
    tensors[gate], tensors[up] = tensors[up], tensors[gate]
    save_file(tensors, student / WEIGHTS_FILE, metadata={"format": "pt"})
    verification = EXPORTERS["onnx"].verify(exports.make("onnx"), student, OPTIONS)
    assert verification.status == "failed"
    with pytest.raises(VerificationError, match="logits differ"):
        verification.enforce()
    with pytest.raises(VerificationError, match=r"layers\.1\.mlp\.(gate|up)_proj"):
        EXPORTERS["onnx-fp16"].verify(exports.make("onnx-fp16"), student, OPTIONS)


def test_a_cpu_without_kernels_leaves_the_weights_compared(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise NotExecutableError("no kernel")

    monkeypatch.setattr(exporter, "OnnxModel", refuse)
    verification = EXPORTERS["onnx-fp16"].verify(
        exports.make("onnx-fp16"), exports.student(tied=True), OPTIONS
    )
    record = verification.to_dict()
    assert (record["status"], record["executed"], record["logits"]) == ("not executed", False, {})
    assert record["checks"]["num_equal_initialisers"] > 20
    with pytest.raises(VerificationError, match="cannot execute"):
        EXPORTERS["onnx"].verify(exports.make("onnx"), exports.student(tied=True), OPTIONS)


def test_a_weight_beyond_fp16_is_refused_by_name(exports: Exports, tmp_path: Path) -> None:
    student = tmp_path / "student"
    shutil.copytree(exports.student(tied=True), student)
    tensors = load_file(student / WEIGHTS_FILE)
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(tensors, student / WEIGHTS_FILE, metadata={"format": "pt"})
    dims = dims_of_config(read_config(student))
    with pytest.raises(VerificationError, match=r"overflows[\s\S]*layers\.2\.mlp\.up_proj"):
        compare_weights(exports.make("onnx-fp16"), student, dims, dtype=torch.float16)


def test_a_genai_config_of_another_model_is_caught(exports: Exports, tmp_path: Path) -> None:
    made = tmp_path / "made"
    shutil.copytree(exports.make("onnx"), made)
    config = json.loads((made / "genai_config.json").read_text())
    config["model"]["decoder"]["head_size"] *= 2
    (made / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(VerificationError, match="head_size"):
        EXPORTERS["onnx"].verify(made, exports.student(tied=True), OPTIONS)


def test_a_truncated_graph_is_caught(exports: Exports, tmp_path: Path) -> None:
    made = tmp_path / "made"
    shutil.copytree(exports.make("onnx"), made)
    data = (made / "model.onnx").read_bytes()
    (made / "model.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(VerificationError, match="onnxruntime cannot"):
        EXPORTERS["onnx"].verify(made, exports.student(tied=True), OPTIONS)


def test_a_failing_builder_says_its_last_lines_and_leaves_nothing(tmp_path: Path) -> None:
    checkpoint, out_dir = tmp_path / "empty", tmp_path / "out"
    checkpoint.mkdir()
    out_dir.mkdir()
    (out_dir / ".build-orphan").mkdir()
    with pytest.raises(VerificationError, match=r"model builder failed[\s\S]*(config\.json|NoneType)"):
        build_onnx(checkpoint, out_dir, precision="fp32")
    assert list(out_dir.iterdir()) == []


def test_a_builder_that_cannot_be_imported_is_a_dependency_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "_BUILDER", "onnxruntime_genai.no_such_module")
    with pytest.raises((DependencyError, VerificationError), match="No module named"):
        build_onnx(tmp_path, tmp_path, precision="fp32")
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    monkeypatch.setattr(builder.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="pip install"):
        build_onnx(tmp_path, tmp_path, precision="fp32")


def test_leftovers_of_a_killed_export_do_not_survive(exports: Exports, tmp_path: Path) -> None:
    inputs = json.loads((exports.make("huggingface") / "artifact.json").read_text())["inputs"]
    partial = tmp_path / "made.partial"
    (partial / ".build-dead").mkdir(parents=True)
    (partial / "model-00002-of-00009.safetensors").write_bytes(b"half")
    (partial / "stage.json").write_text(json.dumps(inputs))
    source = artifact_of(exports.student(tied=True))
    made = execute(export_stage("huggingface"), Export(), source, tmp_path / "made", context()).artifact.path
    assert record_files(made) == record_files(exports.make("huggingface"))
