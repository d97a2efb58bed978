"""Graphs for ONNX Runtime GenAI in fp32 and fp16, and what the runtime reads beside them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from compressor.core.errors import AccuracyGateError, DependencyError, VerificationError
from compressor.models.checkpoint import WEIGHTS_FILE, read_config
from compressor.models.dims import dims_of_config
from compressor.models.load import load_model
from compressor.runs.artifact import read_artifact, record_files
from exporters.onnx import builder, exporter
from exporters.onnx.builder import build_onnx
from exporters.onnx.genai_config import check_genai_config, complete_genai_config
from exporters.onnx.rope import check_tables
from exporters.onnx.runtime import NotExecutableError, OnnxModel
from exporters.onnx.weights import compare_weights
from exporters.registry import exporter_of, require_tools
from exporters.verification.record import VERIFICATION_FILE
from tests.corruptions.faults import swap
from tests.corruptions.formats import change_json, change_tensors, place
from tests.tiny_models import BOS_ID, EOS_ID, PAD_ID, make_model, save_checkpoint
from tests.unit.exporters.conftest import (
    OPTIONS,
    Exports,
    config_of,
    export,
    record_of,
    refuses,
    set_fields,
    verify,
)


def graph_of(made: Path, student: Path, **options: bool) -> OnnxModel:
    return OnnxModel(made, dims_of_config(read_config(student)), **options)


def assert_equal_logits(found: torch.Tensor, model: Any, token_ids: list[int]) -> None:
    with torch.no_grad():
        expected = model(torch.tensor([token_ids])).logits[0]
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


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
    with pytest.raises(AccuracyGateError, match="int4 agrees"):
        export("onnx-int4", exports.source("onnx-int4"), tmp_path / "made", int4_min_top1=0.9999)
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
    graph, model = graph_of(exports.make("onnx"), student), load_model(student, dtype="float32", device="cpu")
    token_ids = list(range(5, 45))
    assert_equal_logits(graph.logits(token_ids), model, token_ids)
    assert_equal_logits(graph.logits_in_two_steps(token_ids, first=11), model, token_ids)


def test_a_graph_of_another_model_is_caught(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = Path(shutil.copytree(exports.student(tied=True), tmp_path / "student"))
    change_tensors(
        student / WEIGHTS_FILE, swap(*(f"model.layers.1.mlp.{part}_proj." for part in ("gate", "up")))
    )
    for name in ("onnx", "onnx-fp16"):
        refuses(name, exports.make(name), student, match=r"layers\.1\.mlp\.(gate|up)_proj")
    # The logits alone show it too.
    monkeypatch.setattr(exporter, "_STORED", {})
    verification = verify("onnx", exports.make("onnx"), student)
    assert verification.status == "failed"
    with pytest.raises(VerificationError, match="logits differ"):
        verification.enforce()


def test_a_cpu_without_kernels_leaves_the_weights_compared(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise NotExecutableError("no kernel")

    monkeypatch.setattr(exporter, "OnnxModel", refuse)
    student = exports.student(tied=True)
    verification = verify("onnx-fp16", exports.make("onnx-fp16"), student)
    assert (verification.status, verification.logits) == ("not executed", {})
    assert int(str(verification.checks["num_equal_initialisers"])) > 20
    refuses("onnx", exports.make("onnx"), student, match="cannot execute")


def test_a_weight_beyond_fp16_is_refused_by_name(exports: Exports, tmp_path: Path) -> None:
    student = Path(shutil.copytree(exports.student(tied=True), tmp_path / "student"))
    name = "model.layers.2.mlp.up_proj.weight"
    change_tensors(student / WEIGHTS_FILE, lambda tensors: tensors[name].view(-1).__setitem__(0, 1e6))
    dims = dims_of_config(read_config(student))
    with pytest.raises(VerificationError, match=r"overflows[\s\S]*layers\.2\.mlp\.up_proj"):
        compare_weights(exports.make("onnx-fp16"), student, dims, dtype=torch.float16)


GENAI_FAULTS: dict[str, tuple[str, Any]] = {
    "head_size": ("model.decoder.head_size", 32),
    "filename": ("model.decoder.filename", "other.onnx"),
    "past_key_names": ("model.decoder.inputs.past_key_names", "past.%d.key"),
    "logits": ("model.decoder.outputs.logits", "scores"),
    "context_length": ("model.context_length", 1024),
    "max_length": ("search.max_length", 4096),
    "bos_token_id": ("model.bos_token_id", EOS_ID),
    "pad_token_id": ("model.pad_token_id", EOS_ID),
    "eos_token_id": ("model.eos_token_id", [BOS_ID]),
    "eos_token_id: one too many": ("model.eos_token_id", [EOS_ID, 7]),
    "eos_token_id: none": ("model.eos_token_id", []),
}


@pytest.mark.parametrize("how", GENAI_FAULTS)
def test_a_genai_config_of_another_model_is_caught(exports: Exports, tmp_path: Path, how: str) -> None:
    made, student = exports.copy("onnx", tmp_path / "made"), exports.student(tied=True)
    check_genai_config(made, student)
    config = json.loads((made / "genai_config.json").read_text())
    section, leaf = place(config, GENAI_FAULTS[how][0])
    section[leaf] = GENAI_FAULTS[how][1]
    (made / "genai_config.json").write_text(json.dumps(config))
    refuses("onnx", made, student, match=how.partition(":")[0])


def test_generation_settings_and_every_end_token_are_written_and_compared(
    exports: Exports, tmp_path: Path
) -> None:
    """The builder carries sampling settings only; a repetition penalty, say, changes what is generated."""
    student = Path(shutil.copytree(exports.student(tied=True), tmp_path / "student"))
    made = exports.copy("onnx", tmp_path / "made")
    wanted = {"repetition_penalty": 1.05, "no_repeat_ngram_size": 3, "eos_token_id": [EOS_ID, PAD_ID, 5]}
    (student / "generation_config.json").write_text(json.dumps(wanted))
    with pytest.raises(VerificationError, match="repetition_penalty"):
        check_genai_config(made, student)
    complete_genai_config(made, student)
    check_genai_config(made, student)
    config = json.loads((made / "genai_config.json").read_text())
    assert config["search"]["repetition_penalty"] == 1.05
    assert set(config["model"]["eos_token_id"]) == {EOS_ID, PAD_ID, 5}
    for dropped in (EOS_ID, PAD_ID, 5):
        short = [end for end in config["model"]["eos_token_id"] if end != dropped]
        shorter = {**config, "model": {**config["model"], "eos_token_id": short}}
        (made / "genai_config.json").write_text(json.dumps(shorter))
        with pytest.raises(VerificationError, match="eos_token_id"):
            check_genai_config(made, student)


def test_a_graph_names_its_builder_and_no_commit_of_a_repository_around_it(exports: Exports) -> None:
    import onnxruntime_genai

    commit = getattr(onnxruntime_genai, "__commit__", None)  # of the library itself, where it is packaged
    named = f"{onnxruntime_genai.__version__}+{commit[:7]}" if commit else onnxruntime_genai.__version__
    made = onnx.load(exports.make("onnx") / "model.onnx", load_external_data=False)
    assert made.producer_version in ("", named)  # older builders write none


def test_a_window_of_the_whole_context_changes_nothing(tmp_path: Path) -> None:
    """The builder is not told of it; nor of a class that the config leaves out."""
    model = make_model("qwen2", use_sliding_window=True, sliding_window=2048, max_window_layers=1)
    student, made = save_checkpoint(tmp_path / "student", model), tmp_path / "made"
    assert config_of(student)["architectures"] == ["Qwen2ForCausalLM"]
    change_json(student / "config.json", lambda config: config.pop("architectures"))
    made.mkdir()
    exporter_of("onnx").write(student, made, OPTIONS)
    token_ids = list(range(40))
    assert_equal_logits(graph_of(made, student).logits(token_ids), model, token_ids)


def test_a_rope_table_of_another_base_is_caught(exports: Exports, tmp_path: Path) -> None:
    made = exports.make("onnx-fp16")
    assert check_tables(made, exports.student(tied=True)) == 2048
    student = Path(shutil.copytree(exports.student(tied=True), tmp_path / "student"))
    parameters = config_of(student)["rope_parameters"]
    for theta in (49_000.0, 10_000.0):
        both = {"rope_theta": theta, "rope_parameters": {**parameters, "rope_theta": theta}}
        set_fields(student / "config.json", **both)
        with pytest.raises(VerificationError, match="rope is not the student's"):
            check_tables(made, student)


def test_a_truncated_graph_is_caught(exports: Exports, tmp_path: Path) -> None:
    made = exports.copy("onnx", tmp_path / "made")
    data = (made / "model.onnx").read_bytes()
    (made / "model.onnx").write_bytes(data[: len(data) // 2])
    refuses("onnx", made, exports.student(tied=True), match="the graph is corrupt")


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
    with pytest.raises(DependencyError, match="pip install onnx_ir, or leave onnx-int4 out"):
        require_tools(["huggingface", "onnx-int4"])


def test_leftovers_of_a_killed_export_do_not_survive(exports: Exports, tmp_path: Path) -> None:
    inputs = json.loads((exports.make("huggingface") / "artifact.json").read_text())["inputs"]
    partial = tmp_path / "made.partial"
    (partial / ".build-dead").mkdir(parents=True)
    (partial / "model-00002-of-00009.safetensors").write_bytes(b"half")
    (partial / "stage.json").write_text(json.dumps(inputs))
    made = export("huggingface", exports.source("huggingface"), tmp_path / "made").path
    assert record_files(made) == record_files(exports.make("huggingface"))
