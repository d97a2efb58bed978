from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from compressor.core.errors import UnsupportedError, UsageError, VerificationError
from compressor.models.checkpoint import WEIGHTS_FILE
from compressor.quantization.e4m3 import E4M3
from compressor.quantization.reader import load_fp8_model
from compressor.recipe.recipe import Export
from compressor.runs.artifact import sha256_of_file
from compressor.runs.stage import execute
from exporters.checks.checkpoint import check_checkpoint
from exporters.export_stage import export_stage
from exporters.huggingface import check_fp8_checkpoint
from exporters.registry import exporter_of
from exporters.verification.record import VERIFICATION_FILE, read_verification
from exporters.verification.verify import verify_directory
from tests.unit.exporters.conftest import OPTIONS, Exports, artifact_of, context

Tensors = dict[str, torch.Tensor]


@pytest.mark.parametrize("tied", [True, False])
def test_the_16_bit_export_is_exact(exports: Exports, tied: bool) -> None:
    made, student = exports.make("huggingface", tied=tied), exports.student(tied=tied)
    assert sha256_of_file(made / WEIGHTS_FILE) == sha256_of_file(student / WEIGHTS_FILE)
    record = json.loads((made / VERIFICATION_FILE).read_text())
    assert (record["status"], record["logits"]) == ("bit-equal", {})
    assert record["checks"]["num_equal_tensors"] == len(load_file(student / WEIGHTS_FILE))
    config = json.loads((made / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 50_000.0
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"


def test_a_config_of_one_generation_becomes_one_of_both(exports: Exports, tmp_path: Path) -> None:
    student = tmp_path / "student"
    shutil.copytree(exports.student(tied=True), student)
    config = json.loads((student / "config.json").read_text())
    for key in ("rope_theta", "rope_scaling", "torch_dtype"):
        config.pop(key, None)
    (student / "config.json").write_text(json.dumps(config))
    stage = export_stage("huggingface")
    if int(transformers.__version__.split(".")[0]) < 5:
        with pytest.raises(UnsupportedError, match="would misread the rope"):
            execute(stage, Export(), artifact_of(student), tmp_path / "made", context())
        return
    made = execute(stage, Export(), artifact_of(student), tmp_path / "made", context()).artifact.path
    assert json.loads((made / "config.json").read_text())["rope_theta"] == 50_000.0
    record = read_verification(made)  # what had to be rewritten is compared by what it computes
    assert (record.status, record.logits["all"].max_abs) == ("passed", 0)
    assert record.logits["all"].num_positions >= 2000


def test_bit_equal_files_are_not_computed_with_again(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_keywords: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    source = artifact_of(exports.student(tied=True))
    made = execute(export_stage("huggingface"), Export(), source, tmp_path / "made", context()).artifact
    assert made.details["status"] == "bit-equal"
    assert verify_directory(made.path, source=source.path).checked[0].status == "bit-equal"


@pytest.mark.parametrize("value", [-0.0, float("nan")])
def test_a_bit_that_no_comparison_of_values_sees_is_caught(
    exports: Exports, tmp_path: Path, value: float
) -> None:
    """-0.0 equals 0.0, and the same NaN on both sides is bit-equal."""
    made, student = (Path(shutil.copytree(exports.make("huggingface"), tmp_path / name)) for name in "ab")
    for directory, number in ((made, value), (student, abs(value))):
        tensors = load_file(directory / WEIGHTS_FILE)
        tensors["model.norm.weight"][3] = number
        save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(VerificationError, match=r"model\.norm\.weight"):
        exporter_of("huggingface").verify(made, student, OPTIONS)


def test_a_dropped_rope_base_is_caught(exports: Exports, tmp_path: Path) -> None:
    made = tmp_path / "made"
    shutil.copytree(exports.make("huggingface"), made)
    config = json.loads((made / "config.json").read_text())
    del config["rope_theta"]
    (made / "config.json").write_text(json.dumps(config))
    with pytest.raises(VerificationError, match="rope_theta"):
        exporter_of("huggingface").verify(made, exports.student(tied=True), OPTIONS)


def test_a_changed_weight_and_an_added_one_are_caught(exports: Exports, tmp_path: Path) -> None:
    made = tmp_path / "made"
    shutil.copytree(exports.make("huggingface"), made)
    original = load_file(made / WEIGHTS_FILE)
    name = "model.layers.1.mlp.down_proj.weight"
    changed = {**original, name: original[name].clone()}
    changed[name][3, 5] += 1
    save_file(changed, made / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(VerificationError, match=r"layers\.1\.mlp\.down_proj[\s\S]*1 of 12288"):
        exporter_of("huggingface").verify(made, exports.student(tied=True), OPTIONS)
    save_file({**original, "extra": torch.ones(1)}, made / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(VerificationError, match="extra"):
        exporter_of("huggingface").verify(made, exports.student(tied=True), OPTIONS)


@pytest.mark.parametrize("tied", [True, False])
def test_the_fp8_export_is_checked_number_by_number_and_its_logits_reported(
    exports: Exports, tied: bool
) -> None:
    made = exports.make("huggingface-fp8", tied=tied)
    record = json.loads((made / VERIFICATION_FILE).read_text())
    assert (record["status"], record["tolerance"]) == ("reported", None)
    assert record["checks"]["num_equal_fp8_weights"] == 21
    assert record["checks"]["scales_follow_recorded_amax"] is True
    assert 0 < record["logits"]["text"]["kl"] < 1.0
    assert not (made / "amax.safetensors").exists()  # loaders read every safetensors file they find


def flip(tensors: Tensors) -> None:
    name = "model.layers.0.mlp.gate_proj.weight"
    stored = tensors[name].view(torch.uint8).clone()
    stored[0, 0] ^= 1
    tensors[name] = stored.view(E4M3)


def swap_gate_and_up(tensors: Tensors) -> None:
    for suffix in ("weight", "weight_scale"):
        gate, up = (f"model.layers.0.mlp.{part}_proj.{suffix}" for part in ("gate", "up"))
        tensors[gate], tensors[up] = tensors[up], tensors[gate]


def halve_input_scale(tensors: Tensors) -> None:
    tensors["model.layers.2.self_attn.o_proj.input_scale"] /= 2


def double_weight_scale(tensors: Tensors) -> None:
    tensors["model.layers.2.self_attn.o_proj.weight_scale"] *= 2


def change_norm(tensors: Tensors) -> None:
    tensors["model.norm.weight"][0] += 1


@pytest.mark.parametrize(
    "damage", [flip, swap_gate_and_up, halve_input_scale, double_weight_scale, change_norm]
)
def test_damage_to_an_fp8_checkpoint_is_caught(
    exports: Exports, tmp_path: Path, damage: Callable[[Tensors], Any]
) -> None:
    made = tmp_path / "made"
    shutil.copytree(exports.make("huggingface-fp8"), made)
    quantised = exports.quantised(tied=True).path
    assert check_fp8_checkpoint(made, quantised)["num_equal_tensors"] == 8
    tensors = load_file(made / WEIGHTS_FILE)
    damage(tensors)
    save_file(tensors, made / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(VerificationError):
        check_fp8_checkpoint(made, quantised)


def drop(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        *sections, leaf = path
        for name in sections:
            document = document[name]
        document.pop(leaf, None)

    return change


def put(value: Any, *path: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        *sections, leaf = path
        for name in sections:
            document = document[name]
        document[leaf] = value

    return change


QUANT, INSIDE = "hf_quant_config.json", "quantization_config"
GROUP = {"weights": {"dynamic": False, "num_bits": 4, "type": "int"}, "targets": ["Linear"]}
RECORD_FAULTS: dict[str, tuple[str, Callable[[dict[str, Any]], None], str]] = {
    "no section in the config": ("config.json", drop(INSIDE), "lacks its quantisation record"),
    "no section in the file": (QUANT, drop("quantization"), "quantization"),
    "another algorithm": (QUANT, put("NVFP4", "quantization", "quant_algo"), "quant_algo"),
    "a cache": (QUANT, put("FP8", "quantization", "kv_cache_quant_algo"), "kv_cache_quant_algo"),
    "groups": (QUANT, put(128, "quantization", "group_size"), "group_size"),
    "head quantised": (QUANT, put([], "quantization", "exclude_modules"), "exclude_modules"),
    "a layer left out": (
        QUANT,
        put(["lm_head", "model.layers.0.*"], "quantization", "exclude_modules"),
        "exclude_modules",
    ),
    "per layer": (QUANT, put({"a": {}}, "quantization", "quantized_layers"), "quantized_layers"),
    "another method": ("config.json", put("fp8", INSIDE, "quant_method"), "quant_method"),
    "a layer ignored": ("config.json", put(["lm_head", "*down_proj"], INSIDE, "ignore"), "ignore"),
    "head not ignored": ("config.json", put(["model.embed_tokens"], INSIDE, "ignore"), "ignore"),
    "int4": ("config.json", put({"group_0": GROUP}, INSIDE, "config_groups"), "config_groups"),
    "a cache in the config": (
        "config.json",
        put({"dynamic": False, "num_bits": 8, "type": "float"}, INSIDE, "kv_cache_scheme"),
        "kv_cache_scheme",
    ),
}


@pytest.mark.parametrize("how", RECORD_FAULTS)
def test_a_quantisation_record_of_something_else_is_caught(
    exports: Exports, tmp_path: Path, how: str
) -> None:
    made = tmp_path / "made"
    shutil.copytree(exports.make("huggingface-fp8"), made)
    check_fp8_checkpoint(made, exports.quantised(tied=True).path)
    name, change, message = RECORD_FAULTS[how]
    document = json.loads((made / name).read_text())
    change(document)
    (made / name).write_text(json.dumps(document))
    with pytest.raises(VerificationError, match=message):
        check_fp8_checkpoint(made, exports.quantised(tied=True).path)
    with pytest.raises(VerificationError, match=message):
        check_checkpoint(made)


def test_an_fp8_checkpoint_without_its_record_is_refused_wherever_it_is_read(
    exports: Exports, tmp_path: Path
) -> None:
    for number, kept in enumerate(("config.json", QUANT, "neither")):
        made = tmp_path / str(number)
        shutil.copytree(exports.make("huggingface-fp8"), made)
        if kept != QUANT:
            (made / QUANT).unlink()
        if kept != "config.json":
            config = json.loads((made / "config.json").read_text())
            del config[INSIDE]
            (made / "config.json").write_text(json.dumps(config))
        with pytest.raises(VerificationError, match="lacks its quantisation record"):
            check_checkpoint(made)
        with pytest.raises(VerificationError, match="lacks its quantisation record"):
            load_fp8_model(made, dtype="float32", device="cpu")


def test_a_checkpoint_that_lacks_a_tensor_is_not_taken_for_its_copy(exports: Exports, tmp_path: Path) -> None:
    source = Path(shutil.copytree(exports.student(tied=True), tmp_path / "source"))
    tensors = load_file(source / WEIGHTS_FILE)
    del tensors["model.norm.weight"]
    save_file(tensors, source / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(VerificationError, match=r"model\.norm\.weight"):
        execute(export_stage("huggingface"), Export(), artifact_of(source), tmp_path / "made", context())


def test_a_lost_end_token_of_the_generation_config_is_caught(exports: Exports, tmp_path: Path) -> None:
    made, student = tmp_path / "made", exports.student(tied=True)
    shutil.copytree(exports.make("huggingface"), made)
    file = made / "generation_config.json"
    assert json.loads(file.read_text())["eos_token_id"] is not None
    for changes in ({"eos_token_id": [1, 2]}, {"temperature": 0.2}):
        file.write_text(json.dumps({**json.loads((student / file.name).read_text()), **changes}))
        with pytest.raises(VerificationError, match=next(iter(changes))):
            exporter_of("huggingface").verify(made, student, OPTIONS)
    file.unlink()
    with pytest.raises(VerificationError, match="generation_config"):
        exporter_of("huggingface").verify(made, student, OPTIONS)


def test_fp8_of_what_was_not_quantised_is_a_usage_error(exports: Exports, tmp_path: Path) -> None:
    source = artifact_of(exports.student(tied=True))
    with pytest.raises(UsageError, match="was not quantised"):
        execute(export_stage("huggingface-fp8"), Export(), source, tmp_path / "made", context())
