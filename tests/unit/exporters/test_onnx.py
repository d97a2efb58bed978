from __future__ import annotations

import json
import shutil
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.core.errors import AccuracyGateError, DependencyError, UnsupportedError, VerificationError
from compressor.models.checkpoint import WEIGHTS_FILE, read_config
from compressor.models.dims import dims_of_config
from compressor.models.load import load_model
from compressor.recipe.recipe import Export
from compressor.runs.artifact import read_artifact, record_files
from compressor.runs.stage import execute
from exporters.export_stage import export_stage
from exporters.onnx import builder, exporter
from exporters.onnx.builder import build_onnx
from exporters.onnx.genai_config import check_genai_config, complete_genai_config
from exporters.onnx.int4 import check_int4
from exporters.onnx.rope import check_tables
from exporters.onnx.runtime import NotExecutableError, OnnxModel
from exporters.onnx.weights import compare_weights
from exporters.registry import exporter_of, require_tools
from exporters.verification.record import VERIFICATION_FILE
from tests.tiny_models import BOS_ID, EOS_ID, PAD_ID, VOCAB_SIZE, make_model, save_checkpoint
from tests.unit.exporters.conftest import OPTIONS, Exports, artifact_of, context

GRAPHS: tuple[str, ...] = ("onnx", "onnx-fp16", "onnx-int4")


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


def test_a_graph_of_another_model_is_caught(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = tmp_path / "student"
    shutil.copytree(exports.student(tied=True), student)
    tensors = load_file(student / WEIGHTS_FILE)
    gate, up = (f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up"))
    tensors[gate], tensors[up] = tensors[up], tensors[gate]
    save_file(tensors, student / WEIGHTS_FILE, metadata={"format": "pt"})
    for name in ("onnx", "onnx-fp16"):
        with pytest.raises(VerificationError, match=r"layers\.1\.mlp\.(gate|up)_proj"):
            exporter_of(name).verify(exports.make(name), student, OPTIONS)
    # The logits alone show it too.
    monkeypatch.setattr(exporter, "_STORED", {})
    verification = exporter_of("onnx").verify(exports.make("onnx"), student, OPTIONS)
    assert verification.status == "failed"
    with pytest.raises(VerificationError, match="logits differ"):
        verification.enforce()


def test_a_cpu_without_kernels_leaves_the_weights_compared(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise NotExecutableError("no kernel")

    monkeypatch.setattr(exporter, "OnnxModel", refuse)
    verification = exporter_of("onnx-fp16").verify(
        exports.make("onnx-fp16"), exports.student(tied=True), OPTIONS
    )
    assert (verification.status, verification.logits) == ("not executed", {})
    assert int(str(verification.checks["num_equal_initialisers"])) > 20
    with pytest.raises(VerificationError, match="cannot execute"):
        exporter_of("onnx").verify(exports.make("onnx"), exports.student(tied=True), OPTIONS)


def test_a_weight_beyond_fp16_is_refused_by_name(exports: Exports, tmp_path: Path) -> None:
    student = tmp_path / "student"
    shutil.copytree(exports.student(tied=True), student)
    tensors = load_file(student / WEIGHTS_FILE)
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(tensors, student / WEIGHTS_FILE, metadata={"format": "pt"})
    dims = dims_of_config(read_config(student))
    with pytest.raises(VerificationError, match=r"overflows[\s\S]*layers\.2\.mlp\.up_proj"):
        compare_weights(exports.make("onnx-fp16"), student, dims, dtype=torch.float16)


GENAI_FAULTS: dict[str, tuple[tuple[str, ...], Any]] = {
    "head_size": (("model", "decoder", "head_size"), 32),
    "filename": (("model", "decoder", "filename"), "other.onnx"),
    "past_key_names": (("model", "decoder", "inputs", "past_key_names"), "past.%d.key"),
    "logits": (("model", "decoder", "outputs", "logits"), "scores"),
    "context_length": (("model", "context_length"), 1024),
    "max_length": (("search", "max_length"), 4096),
    "bos_token_id": (("model", "bos_token_id"), EOS_ID),
    "pad_token_id": (("model", "pad_token_id"), EOS_ID),
    "eos_token_id": (("model", "eos_token_id"), [BOS_ID]),
    "eos_token_id: one too many": (("model", "eos_token_id"), [EOS_ID, 7]),
    "eos_token_id: none": (("model", "eos_token_id"), []),
}


@pytest.mark.parametrize("how", GENAI_FAULTS)
def test_a_genai_config_of_another_model_is_caught(exports: Exports, tmp_path: Path, how: str) -> None:
    made, student = tmp_path / "made", exports.student(tied=True)
    shutil.copytree(exports.make("onnx"), made)
    check_genai_config(made, student)
    config = json.loads((made / "genai_config.json").read_text())
    (*path, leaf), value = GENAI_FAULTS[how]
    section = config
    for name in path:
        section = section[name]
    section[leaf] = value
    (made / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(VerificationError, match=how.partition(":")[0]):
        exporter_of("onnx").verify(made, student, OPTIONS)


def test_generation_settings_and_every_end_token_are_written_and_compared(
    exports: Exports, tmp_path: Path
) -> None:
    """The builder carries sampling settings only; a repetition penalty, say, changes what is generated."""
    student, made = tmp_path / "student", tmp_path / "made"
    shutil.copytree(exports.student(tied=True), student)
    shutil.copytree(exports.make("onnx"), made)
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


def initialisers(directory: Path) -> dict[str, tuple[int, int]]:
    """Where each initialiser lies in the graph's data: offset and length in bytes."""
    found = {}
    for entry in onnx.load(directory / "model.onnx", load_external_data=False).graph.initializer:
        place = {pair.key: pair.value for pair in entry.external_data}
        if place:
            found[entry.name] = (int(place.get("offset", 0)), int(place["length"]))
    return found


def edit(directory: Path, changes: dict[str, bytes]) -> None:
    """Overwrite initialisers in the graph's data."""
    places = initialisers(directory)
    with (directory / "model.onnx.data").open("r+b") as file:
        for name, data in changes.items():
            assert len(data) == places[name][1]
            file.seek(places[name][0])
            file.write(data)


def stored(directory: Path) -> dict[str, bytes]:
    data = (directory / "model.onnx.data").read_bytes()
    return {name: data[start : start + size] for name, (start, size) in initialisers(directory).items()}


def swap_layers(tensors: dict[str, bytes]) -> dict[str, bytes]:
    """Layers 0 and 1 exchanged, weights, scales and norms."""
    pairs = {name: name.replace("layers.0.", "layers.1.") for name in tensors if "layers.0." in name}
    return {a: tensors[b] for a, b in pairs.items()} | {b: tensors[a] for a, b in pairs.items()}


def double_scale(tensors: dict[str, bytes]) -> dict[str, bytes]:
    name = "model.layers.2.mlp.up_proj.MatMul.weight_scales"
    return {name: (2 * np.frombuffer(tensors[name], np.float32)).tobytes()}


def widen_scale(tensors: dict[str, bytes]) -> dict[str, bytes]:
    """Codes rounded again to a scale twice as wide: every weight within half a step, and half as fine."""
    base = "model.layers.2.mlp.up_proj.MatMul.weight"
    packed = np.frombuffer(tensors[f"{base}_Q4"], np.uint8)
    low, high = (np.rint((part.astype(int) - 8) / 2).astype(int) + 8 for part in (packed & 15, packed >> 4))
    codes = (low | high << 4).astype(np.uint8).tobytes()
    scales = (2 * np.frombuffer(tensors[f"{base}_scales"], np.float32)).tobytes()
    return {f"{base}_Q4": codes, f"{base}_scales": scales}


def one_code(tensors: dict[str, bytes]) -> dict[str, bytes]:
    name = "lm_head.MatMul.weight_Q4"
    changed = bytearray(tensors[name])
    changed[5] ^= 0x02
    return {name: bytes(changed)}


def one_scale(tensors: dict[str, bytes]) -> dict[str, bytes]:
    name = "model.layers.0.attn.o_proj.MatMul.weight_scales"
    scales = np.frombuffer(tensors[name], np.float32).copy()
    scales[3] = 1.0
    return {name: scales.tobytes()}


def norm(tensors: dict[str, bytes]) -> dict[str, bytes]:
    name = "model.layers.1.input_layernorm.weight"
    return {name: (np.frombuffer(tensors[name], np.float32) * np.float32(1.01)).tobytes()}


INT4_DAMAGE = {
    "layers": (swap_layers, "half a step|not the student's"),
    "doubled scale": (double_scale, "half a step"),
    "wide scale": (widen_scale, "half a step|too wide"),
    "one code": (one_code, r"half a step[\s\S]*lm_head"),
    "one scale": (one_scale, r"half a step[\s\S]*o_proj|too wide"),
    "norm": (norm, "not the student's"),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("how", INT4_DAMAGE)
def test_damage_to_an_int4_graph_is_caught(exports: Exports, tmp_path: Path, how: str, tied: bool) -> None:
    made, student = tmp_path / "made", exports.student(tied=tied)
    shutil.copytree(exports.make("onnx-int4", tied=tied), made)
    dims = dims_of_config(read_config(student))
    assert check_int4(made, student, dims) == 16
    damage, message = INT4_DAMAGE[how]
    edit(made, damage(stored(made)))
    with pytest.raises(VerificationError, match=message):
        check_int4(made, student, dims)


@pytest.mark.parametrize("tied", [True, False])
def test_int4_weights_are_in_memory_one_matrix_at_a_time(exports: Exports, tied: bool) -> None:
    student, most, total = exports.student(tied=tied), 0, 0
    held: list[weakref.ref[torch.Tensor]] = []

    def keep(_name: str, weight: torch.Tensor) -> None:
        nonlocal most, total
        total += weight.numel()
        held.append(weakref.ref(weight))
        alive = {id(tensor): tensor.numel() for ref in held if (tensor := ref()) is not None}
        most = max(most, sum(alive.values()))

    check_int4(exports.make("onnx-int4", tied=tied), student, dims_of_config(read_config(student)), keep=keep)
    largest = VOCAB_SIZE * 64
    assert most == largest
    assert total > 4 * largest


def test_int4_layers_in_another_order_fall_below_the_floor(exports: Exports, tmp_path: Path) -> None:
    made, student = tmp_path / "made", exports.student(tied=True)
    shutil.copytree(exports.make("onnx-int4"), made)
    edit(made, swap_layers(stored(made)))
    with pytest.raises(VerificationError, match="agrees with the student too little"):
        exporter_of("onnx-int4").verify(made, student, OPTIONS)


def test_int4_computes_what_the_student_with_its_weights_computes(exports: Exports) -> None:
    """Codes and scales multiplied out here, in float64, without the reader."""
    student, made = exports.student(tied=False), exports.make("onnx-int4", tied=False)
    tensors, model = stored(made), load_model(student, dtype="float32", device="cpu")
    for index, layer in enumerate(model.model.layers):
        for name in ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
            linear = layer.get_submodule(name)
            base = f"model.layers.{index}.{name.replace('self_attn', 'attn')}.MatMul.weight"
            linear.weight.data = multiplied_out(tensors, base, *linear.weight.shape)
        qkv = multiplied_out(tensors, f"model.layers.{index}.attn.qkv_proj.MatMul.weight", 128, 64)
        parts = zip(("q_proj", "k_proj", "v_proj"), qkv.split([64, 32, 32]), strict=True)
        for name, part in parts:
            layer.self_attn.get_submodule(name).weight.data = part.clone()
    model.lm_head.weight.data = multiplied_out(tensors, "lm_head.MatMul.weight", VOCAB_SIZE, 64)
    ids = list(range(3, 90))
    expected = model(torch.tensor([ids])).logits[0]
    graph = OnnxModel(made, dims_of_config(read_config(student)), exact_activations=True)
    assert (graph.logits(ids) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert record_of(made)["checks"]["max_relative_to_student_carrying_them"] <= 1e-3


def multiplied_out(tensors: dict[str, bytes], base: str, rows: int, columns: int) -> torch.Tensor:
    packed = np.frombuffer(tensors[f"{base}_Q4"], np.uint8).reshape(rows, -1)
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, -1, 32).astype(np.float64) - 8
    scales = np.frombuffer(tensors[f"{base}_scales"], np.float32).reshape(rows, -1, 1)
    return torch.from_numpy((codes * scales).reshape(rows, -1)[:, :columns]).float()


MISTRAL = {"model_type": "mistral", "sliding_window": None}
QWEN = {"model_type": "qwen2", "use_sliding_window": False}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({**MISTRAL, "sliding_window": 64}, "sliding_window"),
        ({"model_type": "mistral"}, "sliding_window"),  # its class's default is 4096
        ({**MISTRAL, "sliding_window": 64, "use_sliding_window": False}, "sliding_window"),  # no such switch
        (
            {**QWEN, "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
            "sliding_window",
        ),
        (
            {**QWEN, "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0},
            "sliding_window",
        ),
        ({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 8192}, "sliding_window"),
        ({"model_type": "llama", "architectures": ["MistralForCausalLM"]}, "architectures"),
        ({"model_type": "llama", "sliding_window": 64}, "sliding_window"),
        ({"model_type": "llama", "seq_length": 64}, "seq_length"),
        ({**QWEN, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling"),
        ({"model_type": "nemotron"}, "model_type"),
    ],
)
def test_what_a_graph_cannot_express_is_refused_from_the_config(changes: dict[str, Any], field: str) -> None:
    config = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rope_theta": 10_000.0,
        **changes,
    }
    for name in GRAPHS:
        with pytest.raises(UnsupportedError, match=field):
            exporter_of(name).check(config, Export(), None)


@pytest.mark.parametrize(
    "changes",
    [
        MISTRAL,
        {**MISTRAL, "sliding_window": 32768},
        QWEN,
        {"model_type": "qwen3", "sliding_window": 4096, "max_window_layers": 1},
        {**QWEN, "use_sliding_window": True, "sliding_window": 32768, "max_window_layers": 1},
        {**QWEN, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}},
    ],
)
def test_what_a_graph_can_express_is_not_refused(changes: dict[str, Any]) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = {**shape, "vocab_size": 331, "num_key_value_heads": 2, "max_position_embeddings": 32768}
    exporter_of("onnx").check({**config, "rope_theta": 10_000.0, **changes}, Export(), None)


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
    config = json.loads((student / "config.json").read_text())
    assert config.pop("architectures") == ["Qwen2ForCausalLM"]
    (student / "config.json").write_text(json.dumps(config))
    made.mkdir()
    exporter_of("onnx").write(student, made, OPTIONS)
    token_ids = list(range(40))
    graph = OnnxModel(made, dims_of_config(read_config(student)))
    with torch.no_grad():
        expected = model(torch.tensor([token_ids])).logits[0]
    assert (graph.logits(token_ids) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_rope_table_of_another_base_is_caught(exports: Exports, tmp_path: Path) -> None:
    made, student = exports.make("onnx-fp16"), tmp_path / "student"
    assert check_tables(made, exports.student(tied=True)) == 2048
    shutil.copytree(exports.student(tied=True), student)
    for theta in (49_000.0, 10_000.0):
        config = json.loads((student / "config.json").read_text())
        config |= {"rope_theta": theta}
        config["rope_parameters"] = {**config["rope_parameters"], "rope_theta": theta}
        (student / "config.json").write_text(json.dumps(config))
        with pytest.raises(VerificationError, match="rope is not the student's"):
            check_tables(made, student)


def test_a_truncated_graph_is_caught(exports: Exports, tmp_path: Path) -> None:
    made = tmp_path / "made"
    shutil.copytree(exports.make("onnx"), made)
    data = (made / "model.onnx").read_bytes()
    (made / "model.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(VerificationError, match="the graph is corrupt"):
        exporter_of("onnx").verify(made, exports.student(tied=True), OPTIONS)


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
    source = artifact_of(exports.student(tied=True))
    made = execute(export_stage("huggingface"), Export(), source, tmp_path / "made", context()).artifact.path
    assert record_files(made) == record_files(exports.make("huggingface"))
